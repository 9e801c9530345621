"""The judgement on names in pickles."""

from __future__ import annotations

import pytest

from sanitize.suspects.globals import trust

DANGEROUS = """
os.system posix.system nt.system subprocess.Popen sys.exit builtins.eval builtins.exec builtins.getattr
builtins.__import__ builtins.open io.open _io.open importlib.import_module runpy.run_path pty.spawn
socket.socket shutil.rmtree webbrowser.open torch.load torch.hub.load torch.jit.load operator.attrgetter
operator.methodcaller pickle.loads _pickle.loads torch.serialization.load torch.storage._load_from_bytes
torch.fx.graph_module.reduce_graph_module numpy.load numpy.testing._private.utils.runstring functools.reduce
types.FunctionType torch.nn.modules.module.os.system mlflow.pyfunc.load_model
torch.optim.optimizer.torch.os.mkdir
torch.optim.lr_scheduler.types.FunctionType torchvision.models._api.load_state_dict_from_url
asyncio.unix_events._UnixSubprocessTransport._start timeit.timeit pkgutil.resolve_name
"""
ORDINARY = """
collections.OrderedDict torch._utils._rebuild_tensor_v2 torch.FloatStorage torch.nn.modules.conv.Conv2d
torch.float32 torchvision.models.resnet.ResNet torchvision.ops.misc.Conv2dNormActivation numpy.dtype
numpy.core.multiarray.scalar numpy._core.multiarray._reconstruct argparse.Namespace functools.partial
torch.nn.functional.relu torch._C._nn.gelu torch.nn.parallel.data_parallel.DataParallel pathlib.PosixPath
builtins.set torch.Size torch.optim.adam.Adam
"""
UNKNOWN = """
__main__.Net my_lab.models.Net torch.nn.modules.module.hidden torch.nn.modules.conv.evil
timm.models.resnet.ResNet cloudpickle.cloudpickle._make_skeleton_class builtins.type
torch.nn.modules.conv.__builtins__x
"""


@pytest.mark.parametrize(
    ("expected", "names"), [("dangerous", DANGEROUS), ("ordinary", ORDINARY), ("unknown", UNKNOWN)]
)
def test_trust(expected: str, names: str):
    assert {name: trust(name) for name in names.split()} == dict.fromkeys(names.split(), expected)
