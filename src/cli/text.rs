//! Numbers and times as people read them.

/// `2h 4m`, `5m 12s`, `3.2s`: two units at most.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    // Beyond two units nobody reads on.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and casts saturate")]
    let whole = seconds.round() as u64;
    let (days, hours, minutes, seconds) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `1.5 MiB`: three digits and a binary unit.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut scaled, mut unit) = (bytes, 0);
    let mut tenths = 0;
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        tenths = scaled % 1024 * 10 / 1024;
        scaled /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{scaled} B") } else { format!("{scaled}.{tenths} {}", UNITS[unit]) }
}

/// `1.2 M`: two to four digits and a decimal prefix, with a space after the number.
pub(super) fn scaled(number: f64) -> String {
    let mut scaled = number;
    for prefix in ["", "k", "M", "G"] {
        if scaled < 999.5 {
            let digits = usize::from(scaled < 99.95 && !(prefix.is_empty() && scaled.fract() == 0.0));
            return format!("{scaled:.digits$} {prefix}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.1} T")
}

/// `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let shown = [0.0, 3.24, 9.96, 59.4, 312.0, 7440.0, 200_000.0].map(duration);
        assert_eq!(shown, ["0.0s", "3.2s", "10s", "59s", "5m 12s", "2h 4m", "2d 7h"]);
    }

    #[test]
    fn bytes_have_a_binary_unit() {
        let shown = [0, 1023, 1024, 1536, 5 << 20, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "15.9 EiB"]);
    }

    #[test]
    fn rates_have_a_decimal_prefix() {
        let shown = [0.0, 7.0, 7.25, 99.9, 999.0, 1234.0, 56_789.0, 1.2e9, 4.5e13].map(scaled);
        assert_eq!(shown, ["0 ", "7 ", "7.2 ", "99.9 ", "999 ", "1.2 k", "56.8 k", "1.2 G", "45.0 T"]);
    }

    #[test]
    fn counts_have_separators() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
