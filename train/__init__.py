"""i3d-eval and i3d-predict: shards in, classes out. Beam stays outside."""
