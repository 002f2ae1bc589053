//! Measuring Egret and the kernel in turns, and what is printed of it.

#![allow(dead_code, reason = "each of its users needs another part")]

use std::fmt;

use super::lab::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translator {
    Egret,
    Kernel,
}

/// Runs `measure` for both in each round, the one that begins changing.
pub fn take_turns<const N: usize>(
    rounds: usize,
    mut measure: impl FnMut(Translator) -> Result<[f64; N]>,
) -> Result<[Series; N]> {
    let mut all = std::array::from_fn(|_| Series::default());
    for round in 0..rounds {
        let mut order = [Translator::Egret, Translator::Kernel];
        if round % 2 == 1 {
            order.reverse();
        }
        for translator in order {
            for (series, result) in all.iter_mut().zip(measure(translator)?) {
                match translator {
                    Translator::Egret => series.egret.push(result),
                    Translator::Kernel => series.kernel.push(result),
                }
            }
        }
    }
    Ok(all)
}

/// What was measured of both.
#[derive(Default)]
pub struct Series {
    egret: Vec<f64>,
    kernel: Vec<f64>,
}

impl Series {
    pub fn print_header() {
        println!("{:37} {:>25} {:>25} {:>6} {:>7}", "", "Egret", "nft", "ratio", "target");
    }

    /// With what the ratio of the medians, Egret's to the kernel's, is meant to be.
    pub fn print(self, name: &str, target: impl Into<Option<f64>>) {
        let (egret, kernel) = (Figures::of(self.egret), Figures::of(self.kernel));
        let ratio = egret.median / kernel.median;
        let target = target.into().map_or(String::new(), |target| format!("{target:7.2}"));
        println!("{name:37} {:>25} {:>25} {ratio:6.2} {target}", egret.to_string(), kernel.to_string());
    }
}

/// The median of some numbers, the least and the most.
pub struct Figures {
    pub median: f64,
    least: f64,
    most: f64,
}

impl Figures {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let (last, middle) = (values.len().saturating_sub(1), values.len() / 2);
        let median = if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle - 1), at(middle)) };
        Self { median, least: at(0), most: at(last) }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.2} ({:.2} - {:.2})", self.median, self.least, self.most)
    }
}
