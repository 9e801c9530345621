"""The work directory: one process, one job, resumed only with the same settings."""

from __future__ import annotations

import tempfile

import pytest

from sanitize.errors import WorkdirError
from sanitize.workdir import Workdir

JOB = {"model": "models:/suspect/1", "seed": "0"}


def test_a_second_process_is_refused(tmp_path):
    with Workdir(tmp_path), pytest.raises(WorkdirError, match="another process"), Workdir(tmp_path):
        pass


def test_resume_gives_the_run_back(tmp_path):
    with Workdir(tmp_path) as first:
        assert first.begin(JOB) is None
        first.remember_run("run-1")
    with Workdir(tmp_path, resume=True) as second:
        assert second.begin(JOB) == "run-1"


def test_other_settings_are_not_resumed_and_are_named(tmp_path):
    with Workdir(tmp_path) as first:
        first.begin(JOB)
    with Workdir(tmp_path, resume=True) as second, pytest.raises(WorkdirError, match=r"\(seed differ\)"):
        second.begin(JOB | {"seed": "1"})


def test_nothing_to_resume(tmp_path):
    with Workdir(tmp_path, resume=True) as workdir, pytest.raises(WorkdirError, match="nothing to resume"):
        workdir.begin(JOB)


def test_an_unfinished_job_is_noticed_when_started_afresh(tmp_path):
    with Workdir(tmp_path) as first:
        first.begin(JOB)
        first.remember_run("run-1")
        first.checkpoints.mkdir()
    with Workdir(tmp_path) as second:
        assert second.begin(JOB) is None
        assert second.interrupted_run == "run-1"
        assert not second.checkpoints.exists()


def test_a_finished_job_keeps_its_results_only(tmp_path):
    with Workdir(tmp_path) as first:
        first.begin(JOB)
        for folder in (first.checkpoints, first.quarantine, first.staging, first.temporary):
            folder.mkdir()
        (tmp_path / "report.json").write_text("{}")
        first.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "job.json", "report.json"]
    with Workdir(tmp_path, resume=True) as second:
        assert second.finished_report(JOB) == tmp_path / "report.json"
        assert second.finished_report(JOB | {"seed": "1"}) is None


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="--workdir"):
        Workdir(tmp_path / "file" / "job")


def test_a_foreign_job_file_is_refused(tmp_path):
    (tmp_path / "job.json").write_text("[]")
    with Workdir(tmp_path) as workdir, pytest.raises(WorkdirError, match="not a job"):
        workdir.begin(JOB)


def test_a_job_that_never_began_leaves_nothing(tmp_path):
    with Workdir(tmp_path / ".sanitize" / "job"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with Workdir(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_temporary_files_of_a_process_of_its_own_lie_in_the_work_directory(tmp_path, monkeypatch):
    outside = tempfile.gettempdir()
    with Workdir(tmp_path / "beside other work"):
        assert tempfile.gettempdir() == outside
    monkeypatch.setattr(Workdir, "owns_process", True)
    (tmp_path / "job" / "temporary" / "of a killed process").mkdir(parents=True)
    with Workdir(tmp_path / "job") as workdir:
        workdir.begin(JOB)
        assert tempfile.gettempdir() == str(workdir.temporary)
        assert list(workdir.temporary.iterdir()) == []
        tempfile.mkdtemp()
    assert tempfile.gettempdir() == outside
    assert not workdir.temporary.exists()
