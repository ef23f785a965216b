"""The paper's experiments, small: motion clips in place of Kinetics and UCF-101, on a machine without a GPU."""
