"""The folder of a run."""

from omegaconf import OmegaConf

from polydet.engine.output import prepare_output


def test_a_run_that_trains_removes_what_a_killed_save_left(tmp_path):
    half = tmp_path / ".model_0000001.pth.99999999.tmp"  # more than a process can have
    half.write_bytes(b"half")
    (tmp_path / "model_0000000.pth").write_bytes(b"whole")
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path)}})
    prepare_output(cfg, resume=False, eval_only=True)
    assert half.exists()  # of a run that may be at work
    prepare_output(cfg, resume=True, eval_only=False)
    assert not half.exists() and (tmp_path / "model_0000000.pth").exists()
    assert half.name in (tmp_path / "log.txt").read_text()
