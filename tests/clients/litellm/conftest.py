"""LiteLLM's four routes in front of the recording endpoint, and what of a request is compared."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it asks the network
