"""What a decoder holds in mind once it has written a text: the interventions' reach, and hidden states at its end."""

from __future__ import annotations
