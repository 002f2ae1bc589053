//! What is said about readiness, and how often.

use std::time::Duration;

/// Follows whether packets would flow, and tells when there is something new to log.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    was_ready: bool,
    /// What was last complained about, and when.
    complaint: Option<(Vec<String>, Duration)>,
}

/// Something worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Ready,
    NotReady,
}

impl Readiness {
    /// Takes note of what is missing at `now`, counted from when packets could begin to flow.
    pub(super) fn update(&mut self, now: Duration, missing: &[String]) -> Option<Change> {
        if missing.is_empty() {
            self.complaint = None;
            return (!std::mem::replace(&mut self.was_ready, true)).then_some(Change::Ready);
        }
        let due = match &self.complaint {
            // Neighbours take a moment to resolve at the start.
            None => self.was_ready || now >= GRACE,
            Some((same, at)) => {
                let pause = if same == missing { REMINDER } else { PAUSE };
                now.saturating_sub(*at) >= pause
            }
        };
        self.was_ready = false;
        if !due {
            return None;
        }
        self.complaint = Some((missing.to_vec(), now));
        Some(Change::NotReady)
    }
}

const GRACE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(5);
const REMINDER: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_said_once_and_again_after_a_break() {
        let mut readiness = Readiness::default();
        let down = ["interface down".to_owned()];
        let at = Duration::from_secs;
        assert_eq!(readiness.update(at(0), &[]), Some(Change::Ready));
        assert_eq!(readiness.update(at(1), &[]), None);
        assert_eq!(readiness.update(at(2), &down), Some(Change::NotReady));
        assert_eq!(readiness.update(at(3), &down), None);
        assert_eq!(readiness.update(at(4), &[]), Some(Change::Ready));
    }

    #[test]
    fn not_ready_is_said_after_a_grace_and_then_seldom() {
        let mut readiness = Readiness::default();
        let (one, two) = (["one".to_owned()], ["two".to_owned()]);
        assert_eq!(readiness.update(Duration::from_millis(100), &one), None);
        assert_eq!(readiness.update(Duration::from_secs(2), &one), Some(Change::NotReady));
        assert_eq!(readiness.update(Duration::from_secs(3), &two), None, "another reason, but too soon");
        assert_eq!(readiness.update(Duration::from_secs(7), &two), Some(Change::NotReady));
        assert_eq!(readiness.update(Duration::from_secs(200), &two), None);
        assert_eq!(readiness.update(Duration::from_secs(307), &two), Some(Change::NotReady));
    }
}
