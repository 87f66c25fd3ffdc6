"""What a rule is, and how it says which values would have been right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.plan.shape import Run

Found = Iterator[tuple[str, str]]
"""The setting, and what is wrong with it: ``("global_batch_size", "20 is not ...")``."""

TP = "parallel.tensor_model_parallel_size"
PP = "parallel.pipeline_model_parallel_size"
VPP = "parallel.virtual_pipeline_model_parallel_size"
CP = "parallel.context_parallel_size"
EP = "parallel.expert_model_parallel_size"
ETP = "parallel.expert_tensor_parallel_size"
SP = "parallel.sequence_parallel"


@dataclass(frozen=True)
class Rule:
    """A check, and the source that it follows."""

    check: Callable[[Run], Found]
    source: str
    """File and function, in megatron-core's folder unless another project is named."""

    @property
    def name(self) -> str:
        """The function's name with dashes, as tests and messages say it."""
        return self.check.__name__.replace("_", "-")


class RuleBook(list[Rule]):
    """The rules of one module, in the order in which they are written."""

    def rule(self, source: str) -> Callable[[Callable[[Run], Found]], Callable[[Run], Found]]:
        """Enter a function: ``@RULES.rule("parallel_state.py")``."""

        def enter(check: Callable[[Run], Found]) -> Callable[[Run], Found]:
            self.append(Rule(check, source))
            return check

        return enter


def either(values: Iterable[object]) -> str:
    """``2``, ``2 or 4``, ``1, 2 or 4``."""
    texts = [str(v) for v in values]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def nearest_divisors(value: int, *numbers: int) -> list[int]:
    """The nearest common divisors of ``numbers`` below and above ``value``."""
    common = math.gcd(*numbers)
    divisors = [d for d in range(1, math.isqrt(common) + 1) if common % d == 0]
    divisors += [common // d for d in reversed(divisors) if d * d != common]
    return [d for d in divisors if d < value][-1:] + [d for d in divisors if d > value][:1]


def nearest_multiples(value: int, step: int) -> list[int]:
    """The nearest multiples of ``step`` below and above ``value``, none of them 0."""
    below = value // step * step
    return [m for m in (below, below + step) if m > 0]


def the_nearest(values: Sequence[object], of: str | None = None) -> str:
    """``the nearest is 2``, ``the nearest are 2 or 4``, ``the nearest values of NAME are 2 or 4``.

    Args:
        values: those that this rule takes, everything else as it is.
        of: the setting, where it is another one than the message's own.
    """
    one = len(values) == 1
    what = f" value{'' if one else 's'} of {of}" if of else ""
    return f"the nearest{what} {'is' if one else 'are'} {either(values)}"


def the_nearest_divisors(value: int, *numbers: int, of: str | None = None) -> str:
    """Of the divisors that all ``numbers`` have, in words."""
    return the_nearest(nearest_divisors(value, *numbers), of)


def the_nearest_multiples(value: int, step: int, of: str | None = None) -> str:
    """Of the multiples of ``step``, in words."""
    return the_nearest(nearest_multiples(value, step), of)
