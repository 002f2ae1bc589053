//! What the metadata service says is about to happen to the instance, asked for again and again.
//!
//! Four places tell of it, each with a form of its own; each answer is parsed strictly. One that cannot be had or does
//! not parse changes nothing: what was told before holds, and the log says so once. What to do about a notice is
//! decided elsewhere.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::sync::watch;

use super::imds::{Error, Imds, shortened};

/// Something that is about to happen to this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// EC2 takes a Spot instance back, some two minutes after it has said so.
    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
    SpotInterruption { action: SpotAction, at: SystemTime },
    /// A Spot instance is more likely than others to be taken back.
    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html>
    RebalanceRecommendation { noticed: SystemTime },
    /// Its Auto Scaling group is about to end it.
    /// <https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html>
    Termination,
    /// EC2 has planned a reboot, a stop or the like.
    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/viewing_scheduled_events.html>
    Maintenance {
        /// `system-reboot`, `instance-retirement`, ...
        code: String,
        not_before: SystemTime,
    },
}

/// What becomes of a Spot instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpotAction {
    Hibernate,
    Stop,
    Terminate,
}

impl Notice {
    /// In snake case.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::SpotInterruption { .. } => "spot_interruption",
            Self::RebalanceRecommendation { .. } => "rebalance_recommendation",
            Self::Termination => "termination",
            Self::Maintenance { .. } => "maintenance",
        }
    }

    /// When it happens, or for a recommendation, when it was made; unset if that is not told.
    #[must_use]
    pub const fn at(&self) -> Option<SystemTime> {
        match self {
            Self::SpotInterruption { at, .. } => Some(*at),
            Self::RebalanceRecommendation { noticed } => Some(*noticed),
            Self::Maintenance { not_before, .. } => Some(*not_before),
            Self::Termination => None,
        }
    }

    /// What happens, where the label leaves that open.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::SpotInterruption { action: SpotAction::Hibernate, .. } => Some("hibernate"),
            Self::SpotInterruption { action: SpotAction::Stop, .. } => Some("stop"),
            Self::SpotInterruption { action: SpotAction::Terminate, .. } => Some("terminate"),
            Self::Maintenance { code, .. } => Some(code),
            Self::RebalanceRecommendation { .. } | Self::Termination => None,
        }
    }

    /// Whether the instance is sure to end, and soon.
    #[must_use]
    pub const fn is_the_end(&self) -> bool {
        matches!(self, Self::SpotInterruption { .. } | Self::Termination)
    }
}

/// Asks for the notices of this instance for as long as [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct Notices {
    imds: Imds,
    every: Duration,
    told: watch::Sender<Vec<Notice>>,
}

impl Notices {
    /// Asks nothing yet.
    #[must_use]
    pub fn new(imds: Imds, every: Duration) -> Self {
        Self { imds, every, told: watch::Sender::default() }
    }

    /// What is about to happen; it changes once for each change of that. The sender goes when `run`'s future is
    /// dropped.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<Vec<Notice>> {
        self.told.subscribe()
    }

    /// Asks for ever; drop the future to stop. Needs a tokio runtime with time and IO.
    pub async fn run(self) {
        let mut places = PLACES.map(|(path, read)| Place { path, read, told: Vec::new(), failed: None });
        let mut has_answered = false;
        loop {
            for place in &mut places {
                if !place.ask(&self.imds, has_answered).await {
                    // The others would not be answered either.
                    break;
                }
                has_answered = true;
            }
            let all: Vec<Notice> = places.iter().flat_map(|place| place.told.clone()).collect();
            self.told.send_if_modified(|told| {
                let is_new = *told != all;
                *told = all;
                is_new
            });
            tokio::time::sleep(self.every).await;
        }
    }
}

/// Where some of the notices are told.
struct Place {
    path: &'static str,
    read: Read,
    told: Vec<Notice>,
    /// Why the last answer is none.
    failed: Option<String>,
}

/// The notices in an answer, if it is well formed.
type Read = fn(&str) -> Option<Vec<Notice>>;

impl Place {
    /// Gives whether the service answers. One that never has is complained of by those who ask it for more.
    async fn ask(&mut self, imds: &Imds, has_answered: bool) -> bool {
        let path = self.path;
        let malformed = |text: String| Error::Malformed { path: path.to_owned(), value: shortened(&text) };
        let told = imds.get(path).await.and_then(|text| match text {
            Some(text) => (self.read)(text.trim()).ok_or_else(|| malformed(text)),
            None => Ok(Vec::new()),
        });
        match told {
            Ok(told) => {
                self.told = told;
                if self.failed.take().is_some() {
                    tracing::info!(path, "notices of this instance can be read again");
                }
                true
            }
            Err(error) => {
                let answers = matches!(error, Error::Malformed { .. } | Error::Status { .. });
                let reason = error.to_string();
                if self.failed.as_ref() != Some(&reason) && (answers || has_answered) {
                    tracing::warn!(path, %error, "notices of this instance cannot be read, kept as they were");
                    self.failed = Some(reason);
                }
                answers
            }
        }
    }
}

fn spot(text: &str) -> Option<Vec<Notice>> {
    #[derive(Deserialize)]
    struct Answer {
        action: SpotAction,
        time: String,
    }
    let Answer { action, time } = serde_json::from_str(text).ok()?;
    Some(vec![Notice::SpotInterruption { action, at: timestamp(&time)? }])
}

fn rebalance(text: &str) -> Option<Vec<Notice>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        notice_time: String,
    }
    let Answer { notice_time } = serde_json::from_str(text).ok()?;
    Some(vec![Notice::RebalanceRecommendation { noticed: timestamp(&notice_time)? }])
}

/// The state that the Auto Scaling group is bringing the instance to.
fn target_state(text: &str) -> Option<Vec<Notice>> {
    match text {
        "Terminated" | "Warmed:Terminated" => Some(vec![Notice::Termination]),
        "Detached" | "InService" | "Standby" | "Warmed:Hibernated" | "Warmed:Running" | "Warmed:Stopped" => {
            Some(Vec::new())
        }
        _ => None,
    }
}

/// Those that are still to come.
fn maintenance(text: &str) -> Option<Vec<Notice>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Event {
        code: String,
        not_before: String,
        state: String,
    }
    let events: Vec<Event> = serde_json::from_str(text).ok()?;
    let notice = |Event { code, not_before, .. }: Event| {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        let good = (1..=64).contains(&code.len()) && code.bytes().all(is_word);
        let not_before = date(&not_before)?;
        good.then_some(Notice::Maintenance { code, not_before })
    };
    events.into_iter().filter(|event| event.state == "active").map(notice).collect()
}

/// `2017-09-18T08:22:00Z`
fn timestamp(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// `21 Jan 2019 09:00:43 GMT`
fn date(text: &str) -> Option<SystemTime> {
    let words: Vec<&str> = text.split(' ').collect();
    let &[day, month, year, time, "GMT"] = &words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    timestamp(&format!("{year}-{month:02}-{day:0>2}T{time}Z"))
}

const PLACES: [(&str, Read); 4] = [
    ("spot/instance-action", spot),
    ("autoscaling/target-lifecycle-state", target_state),
    ("events/recommendations/rebalance", rebalance),
    ("events/maintenance/scheduled", maintenance),
];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn answers_as_documented_are_understood() {
        let time = at("2017-09-18T08:22:00Z");
        for (word, action) in [
            ("terminate", SpotAction::Terminate),
            ("stop", SpotAction::Stop),
            ("hibernate", SpotAction::Hibernate),
        ] {
            let told = spot(&format!(r#"{{"action": "{word}", "time": "2017-09-18T08:22:00Z"}}"#));
            let notice = Notice::SpotInterruption { action, at: time };
            assert_eq!(notice.detail(), Some(word));
            assert_eq!(told, Some(vec![notice]));
        }
        let noticed = at("2020-11-05T14:19:55Z");
        let told = rebalance(r#"{"noticeTime": "2020-11-05T14:19:55Z"}"#);
        assert_eq!(told, Some(vec![Notice::RebalanceRecommendation { noticed }]));
        for (state, notices) in [
            ("Terminated", vec![Notice::Termination]),
            ("Warmed:Terminated", vec![Notice::Termination]),
            ("InService", vec![]),
            ("Standby", vec![]),
            ("Warmed:Hibernated", vec![]),
        ] {
            assert_eq!(target_state(state), Some(notices), "{state}");
        }
    }

    #[test]
    fn maintenance_that_is_over_is_no_notice() {
        let event = |state: &str| {
            format!(
                r#"{{"NotBefore": "5 Jan 2019 09:00:43 GMT", "Code": "system-reboot", "Description": "reboot",
                    "EventId": "instance-event-0d59937288b749b32", "NotAfter": "", "State": "{state}"}}"#
            )
        };
        let [active, completed, canceled] = ["active", "completed", "canceled"].map(event);
        let not_before = at("2019-01-05T09:00:43Z");
        let told = maintenance(&format!("[{active}, {completed}, {canceled}]"));
        assert_eq!(told, Some(vec![Notice::Maintenance { code: "system-reboot".to_owned(), not_before }]));
        assert_eq!(maintenance("[]"), Some(vec![]));
    }

    #[test]
    fn whatever_is_not_of_its_form_is_malformed() {
        for text in [
            "",
            "null",
            "<html>",
            "{}",
            r#"{"action": "explode", "time": "2017-09-18T08:22:00Z"}"#,
            r#"{"action": "terminate", "time": "soon"}"#,
            r#"{"action": "terminate", "time": "2017-02-31T08:22:00Z"}"#,
            r#"{"action": "terminate", "time": 1505722920}"#,
        ] {
            assert_eq!(spot(text), None, "{text}");
            assert_eq!(rebalance(text), None, "{text}");
            assert_eq!(target_state(text), None, "{text}");
            assert_eq!(maintenance(text), None, "{text}");
        }
        for (date, code) in [
            ("21 Jan 2019 09:00:43 CET", "system-reboot"),
            ("21 Foo 2019 09:00:43 GMT", "system-reboot"),
            ("32 Jan 2019 09:00:43 GMT", "system-reboot"),
            ("\u{e9} Jan 2019 09:00:43 GMT", "system-reboot"),
            ("21 Jan 2019 GMT", "system-reboot"),
            ("21 Jan 2019 09:00:43 GMT", "reboot\\u001b[31m"),
        ] {
            let text = format!(r#"[{{"NotBefore": "{date}", "Code": "{code}", "State": "active"}}]"#);
            assert_eq!(maintenance(&text), None, "{text}");
        }
    }
}
