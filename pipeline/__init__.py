"""kinetics-prep: from clip lists to a published dataset. See `pipeline.prep` for the whole pipeline on one screen."""

import os

# gcsfs would ask for each bucket's type by another protocol, which emulators and some firewalls do not speak, to use
# what only special buckets have. Said here, since a worker unpickles paths before it imports what made them.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
