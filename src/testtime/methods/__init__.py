"""The methods of the field: one paper, one file, one final class.

A class is imported when it is first used; the table of their names needs no torch.

>>> METHODS["PAFKIP"]
Method(module='paf_kip', name='paf-kip', label='PAF+KIP')
"""

from typing import TYPE_CHECKING, NamedTuple

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.methods.actmad import ActMAD
    from testtime.methods.adacontrast import AdaContrast
    from testtime.methods.adanpc import AdaNPC
    from testtime.methods.adcsd import ADCSD
    from testtime.methods.atlas import ATLAS
    from testtime.methods.bn_adapt import BNAdapt
    from testtime.methods.cafa import CAFA
    from testtime.methods.clust3 import ClusT3
    from testtime.methods.cmf import CMF
    from testtime.methods.core import Core
    from testtime.methods.cotta import CoTTA
    from testtime.methods.deyo import DeYO
    from testtime.methods.eata import EATA
    from testtime.methods.ecotta import EcoTTA
    from testtime.methods.eta import ETA
    from testtime.methods.foa import FOA
    from testtime.methods.itta import ITTA
    from testtime.methods.lame import LAME
    from testtime.methods.memo import MEMO
    from testtime.methods.meta_dmoe import MetaDMoE
    from testtime.methods.nc_ttt import NCTTT
    from testtime.methods.nhl import NHL
    from testtime.methods.note import NOTE
    from testtime.methods.ostta import OSTTA
    from testtime.methods.paf_kip import PAFKIP
    from testtime.methods.petal import PETAL
    from testtime.methods.pl import PL
    from testtime.methods.rmt import RMT
    from testtime.methods.roid import ROID
    from testtime.methods.rotta import RoTTA
    from testtime.methods.rpl import RPL
    from testtime.methods.s4t import S4T
    from testtime.methods.santa import SANTA
    from testtime.methods.sar import SAR
    from testtime.methods.shot_im import SHOTIM
    from testtime.methods.sotta import SoTTA
    from testtime.methods.source import Source
    from testtime.methods.stamp import STAMP
    from testtime.methods.t3a import T3A
    from testtime.methods.tent import Tent
    from testtime.methods.tipi import TIPI
    from testtime.methods.ttt import TTT
    from testtime.methods.ttt_flow import TTTFlow
    from testtime.methods.ttt_mae import TTTMAE
    from testtime.methods.ttt_plus_plus import TTTPlusPlus
    from testtime.methods.unient import UniEnt
    from testtime.methods.unient_plus import UniEntPlus
    from testtime.methods.vdp import VDP
    from testtime.methods.vida import ViDA
    from testtime.vision_language.difftpt import DiffTPT
    from testtime.vision_language.rlcf import RLCF
    from testtime.vision_language.tda import TDA
    from testtime.vision_language.tpt import TPT
    from testtime.vision_language.zero import ZERO

__all__ = [
    "ADCSD",
    "ATLAS",
    "CAFA",
    "CMF",
    "EATA",
    "ETA",
    "FOA",
    "ITTA",
    "LAME",
    "MEMO",
    "NCTTT",
    "NHL",
    "NOTE",
    "OSTTA",
    "PAFKIP",
    "PETAL",
    "PL",
    "RLCF",
    "RMT",
    "ROID",
    "RPL",
    "S4T",
    "SANTA",
    "SAR",
    "SHOTIM",
    "STAMP",
    "T3A",
    "TDA",
    "TIPI",
    "TPT",
    "TTT",
    "TTTMAE",
    "VDP",
    "ZERO",
    "ActMAD",
    "AdaContrast",
    "AdaNPC",
    "BNAdapt",
    "ClusT3",
    "CoTTA",
    "Core",
    "DeYO",
    "DiffTPT",
    "EcoTTA",
    "MetaDMoE",
    "RoTTA",
    "SoTTA",
    "Source",
    "TTTFlow",
    "TTTPlusPlus",
    "Tent",
    "UniEnt",
    "UniEntPlus",
    "ViDA",
]


class Method(NamedTuple):
    """Where a method is defined and what it is called.

    Args:
        module: name of its module in this package, or its full name.
        name: name for :func:`testtime.adapt`, in lower case.
        label: name in tables and papers.
    """

    module: str
    name: str
    label: str


METHODS = {
    "ActMAD": Method("actmad", "actmad", "ActMAD"),
    "AdaContrast": Method("adacontrast", "adacontrast", "AdaContrast"),
    "AdaNPC": Method("adanpc", "adanpc", "AdaNPC"),
    "ADCSD": Method("adcsd", "adcsd", "ADCSD"),
    "ATLAS": Method("atlas", "atlas", "aTLAS"),
    "BNAdapt": Method("bn_adapt", "bn-adapt", "BN-adapt"),
    "CAFA": Method("cafa", "cafa", "CAFA"),
    "ClusT3": Method("clust3", "clust3", "ClusT3"),
    "CMF": Method("cmf", "cmf", "CMF"),
    "Core": Method("core", "core", "Core"),
    "CoTTA": Method("cotta", "cotta", "CoTTA"),
    "DeYO": Method("deyo", "deyo", "DeYO"),
    "EATA": Method("eata", "eata", "EATA"),
    "EcoTTA": Method("ecotta", "ecotta", "EcoTTA"),
    "ETA": Method("eta", "eta", "ETA"),
    "FOA": Method("foa", "foa", "FOA"),
    "ITTA": Method("itta", "itta", "ITTA"),
    "LAME": Method("lame", "lame", "LAME"),
    "MEMO": Method("memo", "memo", "MEMO"),
    "MetaDMoE": Method("meta_dmoe", "meta-dmoe", "Meta-DMoE"),
    "NCTTT": Method("nc_ttt", "nc-ttt", "NC-TTT"),
    "NHL": Method("nhl", "nhl", "NHL"),
    "NOTE": Method("note", "note", "NOTE"),
    "OSTTA": Method("ostta", "ostta", "OSTTA"),
    "PAFKIP": Method("paf_kip", "paf-kip", "PAF+KIP"),
    "PETAL": Method("petal", "petal", "PETAL"),
    "PL": Method("pl", "pl", "PL"),
    "RMT": Method("rmt", "rmt", "RMT"),
    "ROID": Method("roid", "roid", "ROID"),
    "RoTTA": Method("rotta", "rotta", "RoTTA"),
    "RPL": Method("rpl", "rpl", "RPL"),
    "S4T": Method("s4t", "s4t", "S4T"),
    "SANTA": Method("santa", "santa", "SANTA"),
    "SAR": Method("sar", "sar", "SAR"),
    "SHOTIM": Method("shot_im", "shot-im", "SHOT-IM"),
    "SoTTA": Method("sotta", "sotta", "SoTTA"),
    "Source": Method("source", "source", "Source"),
    "STAMP": Method("stamp", "stamp", "STAMP"),
    "T3A": Method("t3a", "t3a", "T3A"),
    "Tent": Method("tent", "tent", "TENT"),
    "TIPI": Method("tipi", "tipi", "TIPI"),
    "TTT": Method("ttt", "ttt", "TTT"),
    "TTTFlow": Method("ttt_flow", "tttflow", "TTTFlow"),
    "TTTMAE": Method("ttt_mae", "ttt-mae", "TTT-MAE"),
    "TTTPlusPlus": Method("ttt_plus_plus", "ttt++", "TTT++"),
    "UniEnt": Method("unient", "unient", "UniEnt"),
    "UniEntPlus": Method("unient_plus", "unient+", "UniEnt+"),
    "VDP": Method("vdp", "vdp", "VDP"),
    "DiffTPT": Method("testtime.vision_language.difftpt", "difftpt", "DiffTPT"),
    "RLCF": Method("testtime.vision_language.rlcf", "rlcf", "RLCF"),
    "TDA": Method("testtime.vision_language.tda", "tda", "TDA"),
    "TPT": Method("testtime.vision_language.tpt", "tpt", "TPT"),
    "ZERO": Method("testtime.vision_language.zero", "zero", "ZERO"),
    "ViDA": Method("vida", "vida", "ViDA"),
}
"""The methods by class."""

__getattr__, __dir__ = lazily(__name__, {entry.module: name for name, entry in METHODS.items()})
