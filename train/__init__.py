"""i3d-train, i3d-eval and i3d-predict: shards in, networks and classes out. Beam stays outside."""
