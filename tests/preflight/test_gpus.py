"""What nvidia-smi and dmesg say, as they write it, and what is made of it."""

from pathlib import Path

import pytest

from toolkit.preflight.gpus import (
    APP_FIELDS,
    GPU_FIELDS,
    _ask,
    driver,
    ecc,
    look_at_gpus,
    memory,
    others,
    parse_csv,
    remapping,
    use_gpu,
    visible,
    xids,
)

TWO = """\
0, GPU-aaaa, NVIDIA H100 80GB HBM3, 550.90.07, 81559, 4, 0, No
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 550.90.07, 81559, 4, 0, No
"""
DMESG = """\
[    4.101290] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.90.07
[ 1200.500000] NVRM: Xid (PCI:0000:0f:00): 31, pid=79749, name=python, Ch 00000008, MMU Fault
[90000.250000] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off \
the bus.
[90001.000000] NVRM: Xid (PCI:0000:86:00): 74, pid=1, NVLink: fatal error detected on link 2
"""


def gpus(text: str) -> list[dict[str, str]]:
    return parse_csv(text, GPU_FIELDS)


def test_clean_gpus_are_clean() -> None:
    known = gpus(TWO)
    assert [gpu["uuid"] for gpu in known] == ["GPU-aaaa", "GPU-bbbb"]
    assert not ecc(known).failed and not memory(known).failed


def test_uncorrected_errors_and_pending_pages_name_the_gpu() -> None:
    found = ecc(gpus(TWO.replace("4, 0, No\n", "4, 3, Yes\n", 1)))
    assert found.failed
    assert "GPU-aaaa has 3 uncorrected errors" in found.detail and "GPU-bbbb" not in found.detail


def test_a_gpu_without_ecc_is_no_failure() -> None:
    assert not ecc(gpus(TWO.replace(", 0, No", ", [N/A], [N/A]"))).failed


def test_memory_that_somebody_holds_is_found() -> None:
    found = memory(gpus(TWO.replace("81559, 4,", "81559, 40000,", 1)))
    assert found.failed and found.detail == "GPU-aaaa: 40000 of 81559 MiB in use"


def test_rows_that_wait_for_a_reset_are_found_however_the_driver_says_it() -> None:
    for yes, no in (("Yes", "No"), ("1", "0")):
        text = f"GPU-aaaa, {no}, {no}\nGPU-bbbb, {yes}, {no}\nGPU-cccc, {no}, {yes}\n"
        found = remapping((text, ""), {"GPU-aaaa", "GPU-bbbb", "GPU-cccc"})
        assert found.failed
        assert (
            found.detail == "GPU-bbbb waits for a reset; GPU-cccc has rows that can't be remapped"
        )
        assert not remapping((text, ""), {"GPU-aaaa"}).failed
    assert not remapping(("", "ended with 2: not supported"), {"GPU-aaaa"}).failed


def test_somebody_else_s_process_is_named() -> None:
    text = "GPU-aaaa, 4242, /usr/bin/python3, 1024\n"
    found = others((text, ""), {"GPU-aaaa"})
    assert found.failed and found.detail == "/usr/bin/python3 (pid 4242) on GPU-aaaa"
    assert not others((text, ""), {"GPU-bbbb"}).failed  # of another job, on a shared node
    assert not others(("", ""), {"GPU-aaaa"}).failed
    assert parse_csv("No running processes found\n", APP_FIELDS) == []


def test_xids_of_the_hardware_within_a_day_count() -> None:
    found = xids((DMESG, ""), uptime=90_100)
    assert found.failed and "79 (fallen off the bus) of PCI:0000:3b:00" in found.detail
    assert "74 (NVLink error) of PCI:0000:86:00" in found.detail and "31" not in found.detail
    assert not xids((DMESG, ""), uptime=90_000 + 2 * 86_400).failed
    hidden = xids(("", "ended with 1: dmesg: read kernel buffer failed"), 1.0)
    assert not hidden.failed and hidden.detail.startswith("not known")


def test_only_the_job_s_gpus_of_a_shared_node_are_looked_at() -> None:
    known = gpus(TWO)
    assert [gpu["uuid"] for gpu in visible(known, "1")] == ["GPU-bbbb"]
    assert [gpu["uuid"] for gpu in visible(known, "GPU-aaaa")] == ["GPU-aaaa"]
    for named in (None, "", "4,5", "0,7", "MIG-1234"):  # or counted anew by a container
        assert visible(known, named) == known


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_tools_are_asked_and_what_they_say_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(
        tmp_path,
        "nvidia-smi",
        f"""case $1 in
--query-gpu=index,uuid,*) echo '{TWO.strip()}' ;;
--query-remapped-rows=*) echo 'not supported'; exit 2 ;;
--query-compute-apps=*)
    [[ -e {tmp_path}/asked ]] || echo 'GPU-aaaa, 1, python, 5'
    touch {tmp_path}/asked ;;
*) exit 9 ;;
esac""",
    )
    fake(tmp_path, "dmesg", "echo 'dmesg: Operation not permitted' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    known, wrong = driver()
    assert wrong is None and len(known) == 2
    found = {finding.check: finding for finding in look_at_gpus(known, wanted=2)}
    assert list(found) == ["GPUs", "ECC", "row remapping", "GPU processes", "GPU memory", "Xid"]
    assert not any(finding.failed for finding in found.values())  # the job before has left by now
    assert found["row remapping"].detail == "not known: nvidia-smi ended with 2: not supported"
    assert "Operation not permitted" in found["Xid"].detail


def test_a_driver_that_fails_is_a_failure_and_a_tool_that_is_missing_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    known, wrong = driver()
    assert known == [] and wrong is not None and not wrong.failed
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake(tmp_path, "nvidia-smi", 'echo "NVIDIA-SMI has failed: couldn\'t communicate"; exit 9')
    known, wrong = driver()
    assert known == [] and wrong is not None and wrong.failed and "has failed" in wrong.detail


def test_a_rank_without_a_gpu_fails() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    findings, uuid, _ = use_gpu(0, 1)
    assert [(f.detail, f.failed) for f in findings] == [("sees no GPU", True)] and uuid is None


def test_a_gpu_that_fails_under_torch_is_the_node_s_own_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")

    def fails(*_: object) -> None:
        raise torch.AcceleratorError(
            "CUDA error: uncorrectable ECC error encountered\nCompile with"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fails)
    (found,), uuid, _ = use_gpu(3, 8)
    assert found.failed and uuid is None
    assert found.detail == "fails on GPU 3: CUDA error: uncorrectable ECC error encountered"


def test_a_tool_that_cannot_be_started_and_a_log_of_any_bytes_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake(tmp_path, "nvidia-smi", "exit 0")
    (tmp_path / "nvidia-smi").write_text("#!/none\n")
    (tmp_path / "nvidia-smi").chmod(0o644)
    fake(tmp_path, "dmesg", r"printf '[ 1.5] usb: \xff\n[ 2.0] NVRM: Xid (PCI:0000:3b:00): 79\n'")
    known, wrong = driver()
    assert known == [] and wrong is not None and "nvidia-smi can't be started" in wrong.detail
    assert xids(_ask("dmesg"), uptime=10.0).failed


def test_gpus_that_are_missing_are_counted() -> None:
    found = next(look_at_gpus(gpus(TWO), wanted=8))
    assert found.failed
    assert found.detail == "2 (NVIDIA H100 80GB HBM3), where the job asked for 8"
    assert not next(look_at_gpus(gpus(TWO), wanted=2)).failed
