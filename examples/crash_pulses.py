"""Write a synthetic data set of crash pulses: accelerations of a car in crashes of five kinds, and without a crash.

    python examples/crash_pulses.py my_pulses
    kdedge run-all --data windows:my_pulses

It writes ``train/CLASS/*.csv`` and ``test/CLASS/*.csv``, one recording of 160 ms at 1 kHz per file, the same bytes for
the same seed. **No car was crashed for it**: it shows the format and the commands, and no accuracy on it is evidence
about a real restraint system.

Columns: ``time_s``; ``ax_g``, ``ay_g``, ``az_g`` of a sensor at the tunnel (forward, right, down; SAE J211) and
``ax_front_g`` of one behind the bumper. Every recording is of another car, crash and sensor.

The pulse shapes are the usual one-term approximations (Huang, Vehicle Crash Mechanics, CRC Press 2002; Varat and
Husher, SAE 2000-01-0850). With duration T and change of velocity dv their peaks are

    half sine  a(t) = A sin(pi t / T)      A = pi dv / (2 T)
    haversine  a(t) = A sin(pi t / T)^2    A = 2 dv / T
    triangle   peak at p T                 A = 2 dv / T

====== ================= ========== ============= ======================================================================
class  pulse             T in ms    dv in km/h    modelled on
====== ================= ========== ============= ======================================================================
front  half sine         75 to 110  20 to 64      rigid barrier over the full width (FMVSS 208: 56 km/h)
offset haversine         100 to 150 20 to 64      40 % overlap (UN R94: 56 km/h): longer, with lateral acceleration
pole   triangle, p > 0.6 95 to 140  20 to 50      narrow object between the rails: soft, then a late peak at the engine
side   haversine, ay     55 to 90   10 to 30      moving barrier or pole (UN R95, UN R135): the struck car's own dv
rear   triangle, p < 0.5 70 to 110  8 to 32       sled pulse of seat tests (IIWPG: triangle of 91 ms, 10 g, 16 km/h)
none   see `no_crash`                             rough road, kerb or pothole, hard braking
====== ================= ========== ============= ======================================================================

Cars also differ in the direction of the force, ringing of the structure (40 to 120 Hz), the lead of the front sensor,
mounting angle, offset and gain of the sensors, and noise. Ranges without a source are plausible, not measured.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = ("front", "none", "offset", "pole", "rear", "side")
COLUMNS = ("time_s", "ax_g", "ay_g", "az_g", "ax_front_g")
RATE_HZ = 1000
LENGTH = 160
TRAIN, TEST = 150, 200  # recordings of each class; the gate needs at least 765 test windows
_G = 9.80665

# Shape, duration in ms, change of velocity in km/h, direction in degrees (0: decelerated, 90: hit on the right).
_KINDS = {
    "front": ("half sine", (75, 110), (20, 64), 0),
    "offset": ("haversine", (100, 150), (20, 64), 0),
    "pole": ("late triangle", (95, 140), (20, 50), 0),
    "side": ("haversine", (55, 90), (10, 30), 90),
    "rear": ("early triangle", (70, 110), (8, 32), 180),
}
_Signal = NDArray[np.float64]


def pulse(shape: str, duration_ms: float, dv_kmh: float, peak_at: float = 0.5, start_ms: float = 0.0) -> _Signal:
    """Return a pulse in g, ``[LENGTH]``, whose integral over its whole duration is the change of velocity.

    Args:
        shape: ``half sine``, ``haversine``, or any other word for a triangle.
        duration_ms: Duration T.
        dv_kmh: Change of velocity.
        peak_at: Place of the peak of a triangle, as a share of T.
        start_ms: Start of the pulse.
    """
    phase = (np.arange(LENGTH) * 1000 / RATE_HZ - start_ms) / duration_ms
    inside = (phase >= 0) & (phase <= 1)
    phase = np.clip(phase, 0, 1)
    mean_g = dv_kmh / 3.6 / (duration_ms / 1000) / _G
    if shape == "half sine":
        form, peak = np.sin(np.pi * phase), np.pi / 2
    elif shape == "haversine":
        form, peak = np.sin(np.pi * phase) ** 2, 2.0
    else:
        form, peak = np.minimum(phase / peak_at, (1 - phase) / (1 - peak_at)), 2.0
    return np.where(inside, peak * mean_g * form, 0.0)


def crash(kind: str, rng: np.random.Generator) -> _Signal:
    """Return the accelerations of a crash without sensor errors, in g, ``[LENGTH, 4]``."""
    shape, durations, velocities, degrees = _KINDS[kind]
    duration, dv, start = rng.uniform(*durations), rng.uniform(*velocities), rng.uniform(5, 20)
    peak_at = rng.uniform(0.6, 0.8) if shape == "late triangle" else rng.uniform(0.25, 0.5)
    at_tunnel = pulse(shape, duration, dv, peak_at, start)
    # The front is stopped earlier and more abruptly; in other crashes it moves with the car.
    hit_in_front = degrees == 0
    lead = rng.uniform(3, 10) if hit_in_front else 0.0
    shorter = rng.uniform(0.6, 0.9) if hit_in_front else 1.0
    at_front = pulse(shape, duration * shorter, dv, peak_at, start - lead)
    angle = np.radians(degrees * rng.choice((-1, 1)) + rng.normal(0, 8))
    yaw = rng.uniform(0.1, 0.35) * rng.choice((-1, 1)) if kind == "offset" else 0.0
    ringing = 1 + rng.uniform(0.1, 0.4) * _tone(rng.uniform(40, 120), rng)
    ax, ay = -np.cos(angle) * at_tunnel, np.sin(angle) * at_tunnel
    pitch = rng.normal(0, 0.12) * at_tunnel  # the car dives or rises
    signals = np.stack([ax, ay + yaw * at_tunnel, pitch, -np.cos(angle) * at_front], axis=1)
    rough = _smooth(rng.normal(0, 1, (LENGTH, 4))) * np.abs(signals) * rng.uniform(0.1, 0.5)
    return np.asarray(signals * ringing[:, None] + rough)


def no_crash(rng: np.random.Generator) -> _Signal:
    """Return the accelerations of a rough road, a kerb or pothole, or hard braking, in g, ``[LENGTH, 4]``."""
    signals = np.zeros((LENGTH, 4))
    event = rng.choice(3)
    road = rng.uniform(0.3, 3.0 if event == 0 else 0.5)
    for axis, share in enumerate((0.3, 0.3, 1.0, 0.5)):
        signals[:, axis] += share * road * (_tone(rng.uniform(8, 15), rng) + 0.5 * _tone(rng.uniform(15, 30), rng))
    if event == 1:  # 8 to 30 ms against a wheel: a high peak, a small change of velocity
        duration = rng.uniform(8, 30)
        bump = pulse("half sine", duration, rng.uniform(1.5, 9) * duration / 30, start_ms=rng.uniform(5, 80))
        signals += bump[:, None] * (rng.normal(0, 1, 4) * (0.6, 0.6, 1.0, 1.0))
    if event == 2:
        signals[:, (0, 3)] -= rng.uniform(0.5, 1.1)
    return signals


def recording(kind: str, rng: np.random.Generator) -> _Signal:
    """Return a recording as the sensors report it, in g, ``[LENGTH, 4]``."""
    true = no_crash(rng) if kind == "none" else crash(kind, rng)
    tilt = np.radians(rng.normal(0, 2, 3))  # the mounting angle mixes the axes of the sensor at the tunnel
    mixed = true.copy()
    mixed[:, 0] += tilt[0] * true[:, 1] + tilt[1] * true[:, 2]
    mixed[:, 1] += -tilt[0] * true[:, 0] + tilt[2] * true[:, 2]
    mixed[:, 2] += -tilt[1] * true[:, 0] - tilt[2] * true[:, 1]
    noise = rng.normal(0, rng.uniform(0.1, 0.6), true.shape)
    return np.asarray(_smooth(mixed + noise) * rng.normal(1, 0.03, 4) + rng.normal(0, 0.4, 4))


def write(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> None:
    """Write the data set into a new folder."""
    time = np.arange(LENGTH) / RATE_HZ
    for part, count, stream in (("train", train, 0), ("test", test, 1)):
        for label, kind in enumerate(CLASSES):
            (folder / part / kind).mkdir(parents=True)
            rng = np.random.default_rng((seed, stream, label))
            for index in range(count):
                text = io.StringIO()
                columns = np.column_stack([time, recording(kind, rng)])
                np.savetxt(
                    text, columns, fmt=["%.3f"] + ["%.2f"] * 4, delimiter=",", header=",".join(COLUMNS), comments=""
                )
                (folder / part / kind / f"{index:04d}.csv").write_text(text.getvalue(), encoding="utf-8")


def _tone(frequency_hz: float, rng: np.random.Generator) -> _Signal:
    """Return a sine with a random phase, ``[LENGTH]``."""
    return np.asarray(np.sin(2 * np.pi * (frequency_hz * np.arange(LENGTH) / RATE_HZ + rng.random())))


def _smooth(signals: _Signal) -> _Signal:
    """Return the signals after a low pass of 5 ms, about the bandwidth of a sensor of 180 Hz."""
    window = np.hanning(7)[1:-1]
    return np.stack([np.convolve(signal, window / window.sum(), "same") for signal in signals.T], axis=1)


def main() -> None:
    """Write the data set unless the folder is already there."""
    parser = argparse.ArgumentParser(description="Write a synthetic data set of crash pulses.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.folder.exists():
        raise SystemExit(f"{options.folder} exists; remove it or give another folder")
    write(options.folder, seed=options.seed)
    print(f"{options.folder}: {len(CLASSES)} classes, {TRAIN} training and {TEST} test recordings of each")


if __name__ == "__main__":
    main()
