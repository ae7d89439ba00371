"""A Slurm of one node with accounting, from the packages slurm-wlm, slurmdbd and mariadb-server of Debian; as root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
_ACCOUNTING = "create database slurm; create user slurm@'127.0.0.1'; grant all on slurm.* to slurm@'127.0.0.1'"


def missing() -> list[str]:
    """Return the programs that this host lacks."""
    return [name for name in PROGRAMS if not shutil.which(name)]


@contextmanager
def one_node(root: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Run the daemons in the foreground; return the environment of Slurm's commands."""
    host = socket.gethostname()
    controller, node, accounting, database = _free_ports(4)
    for name in ("munge", "state", "spool", "log"):
        (root / name).mkdir(parents=True)
    (root / "munge").chmod(0o711)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = root / "munge" / "socket"
    common = ["SlurmUser=root", "AuthType=auth/munge", f"AuthInfo=socket={munge}"]
    dbd = _write(
        root / "slurmdbd.conf",
        [*common, "DbdHost=localhost", f"DbdPort={accounting}", f"PidFile={root}/dbd.pid"],
        ["StorageType=accounting_storage/mysql", "StorageHost=127.0.0.1", f"StoragePort={database}"],
        ["StorageUser=slurm", "StorageLoc=slurm"],
    )
    conf = _write(
        root / "slurm.conf",
        [*common, "ClusterName=one", f"SlurmctldHost={host}", f"SlurmctldPort={controller}", f"SlurmdPort={node}"],
        [f"StateSaveLocation={root}/state", f"SlurmdSpoolDir={root}/spool"],
        [f"SlurmctldPidFile={root}/ctld.pid", f"SlurmdPidFile={root}/d.pid"],
        ["ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none"],
        ["SelectType=select/cons_tres", "SelectTypeParameters=CR_CPU"],
        ["AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageHost=localhost"],
        [f"AccountingStoragePort={accounting}", f"AccountingStoragePass={munge}"],
        [f"NodeName={host} CPUs={cpus} State=UNKNOWN", f"PartitionName=all Nodes={host} Default=YES State=UP"],
    )
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    data, sql = root / "data", root / "sql"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
    subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, stdout=subprocess.DEVNULL)

    with ExitStack() as stack:

        def daemon(*command: str | Path, **more: str) -> None:
            with (root / "log" / Path(command[0]).name).open("wb") as log:
                words = [str(part) for part in command]
                process = subprocess.Popen(words, stdout=log, stderr=log, env={**environment, **more})
            stack.callback(process.wait)
            stack.callback(process.terminate)

        def until(*command: str | Path, text: str = "") -> str:
            for _ in range(120):
                words = [str(part) for part in command]
                done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
                if not done.returncode and text in done.stdout:
                    return done.stdout
                time.sleep(0.5)
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}; logs: {root / 'log'}")

        daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}",
            f"--pid-file={root}/munge/pid", f"--log-file={root}/log/munge", f"--seed-file={root}/munge/seed",
        )  # fmt: skip
        daemon(
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sql}", f"--port={database}",
            "--bind-address=127.0.0.1", "--skip-name-resolve", f"--pid-file={root}/db.pid",
        )  # fmt: skip
        until("mariadb", "--no-defaults", f"--socket={sql}", "-e", _ACCOUNTING)
        daemon("slurmdbd", "-D", SLURM_CONF=str(dbd))
        until("sacctmgr", "-n", "show", "cluster")
        until("sacctmgr", "-i", "add", "cluster", "one")
        daemon("slurmctld", "-D")
        daemon("slurmd", "-D")
        until("sinfo", text="idle")
        yield environment


def _write(path: Path, *lines: list[str]) -> Path:
    path.write_text("\n".join(line for group in lines for line in group) + "\n")
    path.chmod(0o600)
    return path


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
