//! One target's health: what checks and connects have said in a row, and what follows from it.
//!
//! Checks and connects are counted apart. A target whose checked port answers while the served one refuses is
//! unhealthy; and one that takes connections is not healthy for it, since a check may ask for more.

use super::config::HealthCheck;
use super::event::{CheckError, State, Why};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    condition: State,
    passed: u8,
    failed: u8,
    connects_failed: u8,
}

impl Health {
    pub const NEW: Self = Self { condition: State::Initial, passed: 0, failed: 0, connects_failed: 0 };

    /// [`State::Initial`], [`State::Healthy`] or [`State::Unhealthy`].
    pub const fn condition(&self) -> State {
        self.condition
    }

    /// Takes in what a check said.
    pub fn checked(&mut self, result: Result<(), CheckError>, thresholds: &HealthCheck) {
        match result {
            Ok(()) => {
                self.failed = 0;
                self.passed = self.passed.saturating_add(1);
                let needed = match self.condition {
                    State::Initial => 1,
                    _ => thresholds.healthy_threshold,
                };
                if self.condition != State::Healthy && self.passed >= needed {
                    *self = Self { condition: State::Healthy, ..Self::NEW };
                }
            }
            Err(error) => {
                self.passed = 0;
                self.failed = self.failed.saturating_add(1);
                let unhealthy = matches!(self.condition, State::Unhealthy(_));
                if unhealthy || self.failed >= thresholds.unhealthy_threshold {
                    self.condition = State::Unhealthy(Why::HealthCheck(error));
                }
            }
        }
    }

    /// Takes in how a client's connection fared.
    pub fn connected(&mut self, result: Result<(), CheckError>, thresholds: &HealthCheck) {
        let Err(error) = result else {
            self.connects_failed = 0;
            return;
        };
        self.connects_failed = self.connects_failed.saturating_add(1);
        let unhealthy = matches!(self.condition, State::Unhealthy(_));
        if !unhealthy && self.connects_failed >= thresholds.unhealthy_threshold {
            // Of an unhealthy target no more is learned: these connects may have begun before it was mended.
            *self = Self { condition: State::Unhealthy(Why::Connect(error)), ..Self::NEW };
        }
    }
}
