import pytest
import torch

from bertdyn.training import snapshots
from bertdyn.training.snapshots import Snapshot, norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_distances_over_pieces_and_after_a_second_take(monkeypatch, tmp_path, dtype):
    monkeypatch.setattr(snapshots, "CHUNK", 7)  # tensors end in mid-piece, or within the first
    first, second, now = ([torch.randn(shape, dtype=dtype) for shape in ((5, 6), (3,), (), (0, 4))] for _ in range(3))
    snapshot = Snapshot(first, tmp_path)
    for then in (first, second):
        snapshot.take(then)
        distances, then_norms = snapshot.compare(now)
        for i in range(4):
            torch.testing.assert_close(distances[i], (now[i] - then[i]).double().norm())
            torch.testing.assert_close(then_norms[i], then[i].double().norm())
    torch.testing.assert_close(norms(now), torch.stack([tensor.double().norm() for tensor in now]))
    assert not list(tmp_path.iterdir())  # the file has no name: nothing stays, however the process ends
