"""kinetics-prep: from clip lists to a published dataset. See `pipeline.prep` for the whole pipeline on one screen."""
