"""Base models of eleven families, the reward model made of them, and the adapter folder."""

import logging

# PEFT imports bitsandbytes, which then warns of an optional kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
