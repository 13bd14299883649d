"""CloudEvents SQL 1.0.0: expressions over the context attributes of an event.

    wanted = Expression("type = 'order.created' AND sequence > 5")    # raises ParseError
    wanted.matches({"type": "order.created", "sequence": "7"})           # True

Source: cloudevents/spec, `cesql/spec.md`, release 1.0.0. `lexer` and `parser` read an expression into the nodes of
`syntax`; `evaluator` compiles those; `values`, `functions` and `like` are what it computes with; `expression` is the
whole, for those who use it. Nothing here knows of filters or Brokers.
"""

from broker.cesql.errors import ErrorKind, EvaluationError, ParseError
from broker.cesql.expression import Expression, Outcome, Refusal
from broker.cesql.parser import MAX_DEPTH, MAX_LENGTH

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "ErrorKind",
    "EvaluationError",
    "Expression",
    "Outcome",
    "ParseError",
    "Refusal",
]
