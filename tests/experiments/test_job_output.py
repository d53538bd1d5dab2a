"""What a job of an experiment prints may be no text: it is read all the same, on a cluster's node and here."""

from experiments.lab import pool
from experiments.lab.remote import _Job

PRINTS = "import sys; sys.stdout.buffer.write(b'before\\nhalf \\xff\\xfe of it\\nafter\\n'); sys.exit(3)"
LINES = ["before\n", "half \ufffd\ufffd of it\n", "after\n"]


def test_a_job_on_a_node_goes_on_after_output_that_is_no_text(tmp_path):
    assert list(_Job().lines(["python", "-c", PRINTS], {}, str(tmp_path))) == [*LINES, 3]


def test_so_does_a_job_here():
    process = pool._start(pool.Job("job", ["python", "-c", PRINTS]), set())
    with process.stdout:
        assert list(process.stdout) == LINES
    assert process.wait() == 3
