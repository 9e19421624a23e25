"""Our tuners inside the training loops of other libraries.

`TunedModule` is an `nn.Module` whose parameters are a tuner's trainable values and nothing else.
`DeltaCallback` lets `transformers.Trainer` train one. The room imports transformers, so that
nothing below it needs to.
"""

from graftwork.integrations._callback import DeltaCallback as DeltaCallback
from graftwork.integrations._tuned import TunedModule as TunedModule

__all__ = ["DeltaCallback", "TunedModule"]
