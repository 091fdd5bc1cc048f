"""Detectors of anomalies in C: the scores and alarms of the native detector."""

import subprocess

import pytest
import torch

import hibana as hb
from c_programs import CC, SANITIZERS, WARNINGS, needs_cc

MAIN = """
#include "watch.h"
#include <stdio.h>
static watch_state net;
int main(int count, char **arguments) {
    float x[WATCH_COLUMNS];
    (void)arguments;
    watch_reset(&net);
    net.learn = count > 1;
    for (;;) {
        for (int i = 0; i < WATCH_COLUMNS; i++)
            if (scanf("%f", &x[i]) != 1) return 0;
        float score = watch_step(&net, x);
        printf("%a %d\\n", (double)score, watch_alarm(&net));
    }
}
"""


@needs_cc
@pytest.mark.parametrize("columns", [1, 2])
def test_c_gives_the_same_scores_and_alarms(columns, tmp_path):
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(4000.0)[:, None]
    series = torch.sin(time / torch.tensor([8.0, 11.0])) + 0.1 * torch.randn(4000, 2, generator=generator)
    series = series[:, :columns].contiguous()
    detector = hb.learn.AnomalyDetector(columns, memory=1024, threshold=5.0)
    detector(series[:2000])
    detector.reset()
    program = hb.convert.detector_to_c(detector, name="watch")
    program.write(tmp_path / "watch.c")
    (tmp_path / "main.c").write_text(MAIN)
    command = [CC, *WARNINGS, *SANITIZERS, "-O1", "-o", tmp_path / "run", "watch.c", "main.c", "-lm"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    test = series[2000:]
    test[1500:1520] = 1.5
    text = "\n".join(" ".join(f"{x:.9g}" for x in row) for row in test.tolist())
    start = {name: value.clone() for name, value in detector.state_dict().items()}
    for options, learn in (([], False), (["learn"], True)):
        detector.load_state_dict(start)
        detector.reset()
        scores = detector(test, learn=learn)
        run = [tmp_path / "run", *options]
        output = subprocess.run(run, input=text, capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in output.splitlines()]
        assert torch.equal(torch.tensor([float.fromhex(score) for score, _ in rows]), scores)
        alarms = [step for step, (_, alarm) in enumerate(rows) if alarm == "1"]
        assert alarms == detector.alarms(scores)
        assert 1500 in alarms


@needs_cc
def test_the_bytes_are_those_of_the_struct(tmp_path):
    program = hb.convert.detector_to_c(hb.learn.AnomalyDetector(3), name="watch")
    program.write(tmp_path / "other.c")
    assert '#include "other.h"' in (tmp_path / "other.c").read_text()
    check = f'#include "other.h"\nint x[sizeof(watch_state) == {program.changing_bytes} ? 1 : -1];\n'
    (tmp_path / "size.c").write_text(check)
    subprocess.run([CC, "-std=c99", "-c", "size.c"], cwd=tmp_path, check=True)
