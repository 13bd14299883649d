"""What ``penstock send`` is given as data."""

from pathlib import Path

from click.testing import CliRunner

from penstock.cli.main import main


def test_a_file_that_is_no_utf_8_is_refused_with_a_sentence(tmp_path: Path):
    (tmp_path / "order.json").write_bytes(b'{"name": "Andr\xe9"}')
    result = CliRunner().invoke(main, ["send", "--type", "made", "--data", f"@{tmp_path / 'order.json'}"])
    assert (result.exit_code, "--data is not JSON" in result.output) == (1, True), result.output


def test_bytes_on_the_command_line_are_not_taken_for_characters():
    result = CliRunner().invoke(main, ["send", "--type", "made", "--data", '"Andr\udce9"'])
    assert (result.exit_code, "--data is not JSON" in result.output) == (1, True), result.output
