//! What `egret top` knows: two looks at the daemon, and what follows from their difference.

use std::cmp::Reverse;
use std::time::Duration;

use ratatui::crossterm::event::KeyCode;
use tokio::time::Instant as Clock;

use crate::admin::client::Error;
use crate::admin::{Measure, Status, TalkersOf, TalkersReport};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Model {
    now: Option<Look>,
    before: Option<Look>,
    talkers: TalkersReport,
    /// Why there is no answer, since when.
    gone: Option<(String, Clock)>,
    by: Measure,
    hour: bool,
}

#[derive(Debug)]
struct Look {
    at: Clock,
    status: Status,
}

/// What happens in a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) packets_out: f64,
    pub(super) bits_out: f64,
    pub(super) packets_in: f64,
    pub(super) bits_in: f64,
    pub(super) opened: f64,
    pub(super) closed: f64,
    /// By reason, the most frequent first; no others.
    pub(super) drops: Vec<(String, f64)>,
}

impl Model {
    /// Takes in an answer, or that there is none.
    pub(super) fn take_in(&mut self, at: Clock, answer: Result<(Status, TalkersReport), Error>) {
        match answer {
            Ok((status, talkers)) => {
                // A daemon that was started anew counts from 0.
                let same = |look: &Look| look.status.uptime_seconds <= status.uptime_seconds;
                self.before = self.now.take().filter(same);
                self.now = Some(Look { at, status });
                self.talkers = talkers;
                self.gone = None;
            }
            Err(error) => {
                let since = self.gone.take().map_or(at, |(_, since)| since);
                self.gone = Some((error.to_string(), since));
            }
        }
    }

    /// Gives whether the daemon is to be asked anew.
    pub(super) fn press(&mut self, key: KeyCode) -> bool {
        match key {
            KeyCode::Char('b') => self.by = Measure::Bytes,
            KeyCode::Char('p') => self.by = Measure::Packets,
            KeyCode::Char('s') => self.by = Measure::Sessions,
            KeyCode::Char('o') => self.by = Measure::Ports,
            KeyCode::Char('h') => {
                self.hour = !self.hour;
                return false;
            }
            _ => return false,
        }
        true
    }

    pub(super) const fn by(&self) -> Measure {
        self.by
    }

    pub(super) fn status(&self) -> Option<&Status> {
        self.now.as_ref().map(|look| &look.status)
    }

    /// Why there is no answer, and for how long there has been none.
    pub(super) fn gone(&self, now: Clock) -> Option<(&str, Duration)> {
        self.gone.as_ref().map(|(why, since)| (why.as_str(), now.saturating_duration_since(*since)))
    }

    /// The talkers, and of which time.
    pub(super) const fn talkers(&self) -> (&TalkersOf, &'static str) {
        if self.hour {
            (&self.talkers.last_hour, "last hour")
        } else {
            (&self.talkers.last_minute, "last minute")
        }
    }

    /// Unset until the daemon has answered twice.
    pub(super) fn rates(&self) -> Option<Rates> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let (new, old) = (&now.status, &before.status);
        let traffic = |name: &str| {
            let of = |status: &Status| status.traffic.get(name).copied();
            match (of(new), of(old)) {
                (Some(new), Some(old)) => (rate(new.packets, old.packets), rate(new.bytes, old.bytes) * 8.0),
                _ => (0.0, 0.0),
            }
        };
        let ((packets_out, bits_out), (packets_in, bits_in)) =
            (traffic("out_to_external"), traffic("in_from_external"));
        let drops = new.drops.iter().map(|(reason, packets)| {
            (reason.clone(), rate(*packets, old.drops.get(reason).copied().unwrap_or_default()))
        });
        let mut drops: Vec<_> = drops.filter(|(_, rate)| *rate > 0.0).collect();
        drops.sort_by_key(|(_, rate)| Reverse(rate.to_bits()));
        Some(Rates {
            packets_out,
            bits_out,
            packets_in,
            bits_in,
            opened: rate(new.sessions.opened, old.sessions.opened),
            closed: rate(new.sessions.closed, old.sessions.closed),
            drops,
        })
    }
}
