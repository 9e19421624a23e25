"""How losses become one update of the trainable values."""

from graftwork.steps._step import Context as Context
from graftwork.steps._step import Step as Step
