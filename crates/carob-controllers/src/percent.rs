//! Numbers that may be given as a part of a whole: `2` or `25%` (apimachinery `util/intstr`). Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// The number that `value` means of `whole`; text that is no percentage, which validation refuses, means none.
pub(crate) fn scaled(value: &IntOrString, whole: i32, round: Round) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok()).unwrap_or(0);
            let hundredths = percent.saturating_mul(i64::from(whole));
            let scaled = match round {
                Round::Up => hundredths.saturating_add(99).div_euclid(100),
                Round::Down => hundredths.div_euclid(100),
            };
            i32::try_from(scaled).unwrap_or(if scaled < 0 { i32::MIN } else { i32::MAX })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_as_asked() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        let cases = [
            (IntOrString::Int(3), 10, Round::Up, 3),
            (percent("25%"), 10, Round::Up, 3),
            (percent("25%"), 10, Round::Down, 2),
            (percent("25%"), 8, Round::Up, 2),
            (percent("0%"), 8, Round::Up, 0),
            (percent("100%"), 7, Round::Down, 7),
            (percent("nonsense"), 7, Round::Up, 0),
            (percent("9223372036854775807%"), i32::MAX, Round::Up, i32::MAX),
            (percent("100%"), i32::MAX, Round::Up, i32::MAX),
            (percent("-9223372036854775808%"), i32::MAX, Round::Down, i32::MIN),
        ];
        for (value, whole, round, expected) in cases {
            assert_eq!(scaled(&value, whole, round), expected, "{value:?} of {whole} {round:?}");
        }
    }
}
