"""The laws that every adapter obeys, and the means to try them on yours.

An adapter is trusted with a running model, so what it must not do is written down as 27 laws: it leaves the
caller's model, tensors and random generators alone; its step is what it declares; its state is a value that
holds all that moves; it composes. Each law is a function whose docstring is the law, tried in small worlds: a
BatchNorm network, a GroupNorm network and a vision transformer that know a synthetic task, and a stream that
drifts away from it.

Try a method of your own::

    from functools import partial
    from testtime.laws import CLASSES, Case, check_adapter, parametrize_with_laws

    check_adapter(MyMethod)  # any function of a model that returns an adapter
    check_adapter(partial(MyMethod, classes=CLASSES), worlds=["batchnorm"])
    check_adapter(MyMethod, excuses={"order_equivariant": "draws an augmentation per image (section 3.2)"})

or, one pytest item per law::

    @parametrize_with_laws([Case("mine", MyMethod), Case("wrapped", lambda model: Episodic(MyMethod(model)))])
    def test_obeys(check):
        check()

An excuse names a fact of the method's paper. Excuses are strict: an excused law that holds fails the run.
Memories and windows should be small (up to 64 images), for the streams are short; the worlds have ``CLASSES``
classes.

>>> from testtime import laws
>>> from testtime.methods import Tent
>>> laws.check_adapter(Tent, worlds=["batchnorm"], laws=["source_untouched", "alive", "reset_is_birth"])
>>> class Forgetful(Tent):  # a reset that keeps the optimizer's momentum
...     def reset(self):
...         kept = {k: v for k, v in self.state_dict().items() if k.startswith("optimizer")}
...         super().reset()
...         self.load_state_dict(self.state_dict() | kept)
>>> print(*laws.broken_laws(Forgetful, worlds=["batchnorm"], laws=["alive", "reset_is_birth"]))
reset_is_birth
"""

from testtime.laws.check import (
    LAWS,
    Case,
    broken_laws,
    check_adapter,
    installed_cases,
    parametrize_with_laws,
)
from testtime.laws.trial import Law, LawBroken, Make
from testtime.laws.worlds import CLASSES, WORLDS, Meter, World

__all__ = [
    "CLASSES",
    "LAWS",
    "WORLDS",
    "Case",
    "Law",
    "LawBroken",
    "Make",
    "Meter",
    "World",
    "broken_laws",
    "check_adapter",
    "installed_cases",
    "parametrize_with_laws",
]
