"""Which names in a pickle are ordinary in a model, which are unknown, and which are never acceptable.

None of them is ever looked up or called: this decides what is said about the file, and whether it is read at all.
"""

from __future__ import annotations

import re
import sys
from typing import Literal

Trust = Literal["ordinary", "unknown", "dangerous"]

_DANGEROUS_MODULES = re.compile(
    # start programs or change the interpreter
    r"(os|posix|nt|subprocess|_posixsubprocess|pty|commands|popen2|sys|ctypes|_ctypes|cffi|multiprocessing"
    r"|concurrent|threading|_thread|signal|platform|asyncio"
    # import, evaluate or unpickle further things
    r"|importlib|imp|runpy|pkgutil|zipimport|code|codeop|pdb|bdb|pydoc|doctest|timeit|trace|profile"
    r"|cProfile|marshal|pickle|_pickle|cPickle|shelve|joblib|inspect|gc|site|sysconfig|pip|setuptools"
    r"|distutils|ensurepip|venv|idlelib|lib2to3"
    # reach files or the network
    r"|io|_io|shutil|tempfile|glob|fileinput|linecache|zipfile|tarfile|gzip|bz2|lzma|sqlite3|dbm|mmap"
    r"|webbrowser|socket|_socket|socketserver|ssl|http|urllib|urllib2|httplib|ftplib|smtplib|telnetlib"
    r"|imaplib|poplib|nntplib|xmlrpc|requests|httpx|aiohttp|urllib3|boto3|paramiko|wsgiref|cgi|cgitb"
    r"|antigravity"
    # call what they are given
    r"|operator|_operator|mlflow|nose|test)"
)
_DANGEROUS_PREFIXES = (
    "torch.hub",
    "torch.jit",
    "torch.package",
    "torch.fx",
    "torch.export",
    "torch.distributed",
    "torch.multiprocessing",
    "torch.testing",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
    "torch.utils.collect_env",
    "torch.utils.bottleneck",
    "torch.utils._config_module",
    "torch._inductor",
    "torch._dynamo",
    "torch.ops",
    "torch.classes",
    "numpy.testing",
    "numpy.f2py",
    "numpy.distutils",
    "numpy.ctypeslib",
    "numpy.lib",
    "logging.config",
    "pandas.io",
)
_DANGEROUS_NAMES = re.compile(
    r"(builtins\.(eval|exec|execfile|compile|open|file|input|getattr|setattr|delattr|__import__|globals|locals|vars|"
    r"breakpoint|exit|quit|help|map|filter|apply|reduce|memoryview)"
    r"|torch\.(load|save|compile|library\..*|serialization\.(?!_get_layout$).*|storage\._load_from_bytes)"
    r"|functools\.reduce|itertools\.(starmap|accumulate)|types\.(FunctionType|MethodType|LambdaType|ModuleType)"
    r"|numpy\.(load|save|savetxt|loadtxt|genfromtxt|fromfile|fromregex|memmap|vectorize|apply_.*)"
    r"|pandas\.(eval|read_.*)|copyreg\.(extension|add_extension)|a name computed while loading"
    r"|.*\.(system|popen|spawn\w*|exec[lv]\w*|check_output|__globals__|__builtins__|__subclasses__|__getattribute__"
    r"|load_state_dict_from_url|load_url|urlopen|urlretrieve))"
)
_ORDINARY = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter|deque)"
    r"|builtins\.(set|frozenset|list|dict|tuple|int|float|bool|complex|bytes|bytearray|str|slice|range|object|long|unicode)"
    r"|_codecs\.encode|copyreg\._reconstructor|argparse\.Namespace|types\.SimpleNamespace|functools\.partial"
    r"|datetime\.\w+|decimal\.Decimal|uuid\.UUID|pathlib\.(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|_?core\.multiarray\.(scalar|_reconstruct|_frombuffer))"
    r"|numpy\._core\.numeric\._frombuffer|numpy\.core\.numeric\._frombuffer|numpy\.dtypes\.\w+"
    r"|torch\.(Size|device|dtype|Tensor|\w*Storage|u?int\d+|b?float\d+\w*|bool|half|double|long|strided|\w+Tensor)"
    r"|torch\.(storage\.\w*Storage|cuda\.\w*Storage|_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2)"
    r"|torch\.serialization\._get_layout|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.nn\.(modules(\.\w+)+|parallel(\.\w+)+|quantized(\.\w+)*|utils\.parametriz\w+(\.\w+)*)\.[A-Z]\w*"
    r"|torch\.nn\.functional\.\w+|torch\._C\._nn\.\w+|torch\.optim(\.\w+)+"
    r"|torchvision\.(models(\.\w+)+|ops(\.\w+)*\.[A-Z]\w*|transforms(\.\w+)*\.[A-Z]\w*)"
)
_TORCHSCRIPT = re.compile(r"torch\.jit\._pickle\.(build_\w+|restore_type_tag)")
_ELSEWHERE = sys.stdlib_module_names | {"torch", "torchvision", "numpy"}
BY_VALUE = re.compile(r"cloudpickle\..*|dill\..*|types\.CodeType|builtins\.(type|property|staticmethod|classmethod)")
"""Names that rebuild classes and functions from byte code in the pickle."""


def trust(name: str) -> Trust:
    """How a name in a pickle is judged.

    Args:
        name: Module and attribute with a dot between, for example ``posix.system``.

    Example:
        >>> trust("posix.system"), trust("torch.nn.modules.conv.Conv2d"), trust("my_lab.Net")
        ('dangerous', 'ordinary', 'unknown')
    """
    if _TORCHSCRIPT.fullmatch(name):
        return "ordinary"
    if _DANGEROUS_MODULES.fullmatch(name.partition(".")[0]) or _DANGEROUS_NAMES.fullmatch(name):
        return "dangerous"
    if any(name == prefix or name.startswith(f"{prefix}.") for prefix in _DANGEROUS_PREFIXES):
        return "dangerous"
    if not _ORDINARY.fullmatch(name) or "__" in name:
        return "unknown"
    # A dotted name reaches through an ordinary module into what that imported: torch.optim.optimizer.torch.os.mkdir.
    return "dangerous" if _ELSEWHERE.intersection(name.split(".")[1:-1]) else "ordinary"
