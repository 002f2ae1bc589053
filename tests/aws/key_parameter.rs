//! The key of a fleet in Systems Manager's Parameter Store.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use egret::aws::{Calls, Failure, Outcome, ParameterError, Parameters};
use serde_json::{Value, json};

use crate::http::{Answer, Request, serve, serve_at};
use crate::lab::{DEADLINE, Egret, Failure as LabFailure, Result, wait_for};
use crate::moto::Moto;
use crate::reconcile::config;
use crate::vpc::{KEY, Vpc, in_namespace};

const NAME: &str = "/egret/peer-key";
const ARN: &str = "arn:aws:ssm:eu-west-1:*:parameter/egret/peer-key";
const WITHIN: Duration = Duration::from_secs(10);

/// What the service does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Tells(&'static str),
    Refuses(u16, &'static str),
    Rubbish,
    Silent,
}

/// A Parameter Store with one parameter.
#[derive(Debug)]
struct Store {
    mood: Mood,
    asked: usize,
}

impl Store {
    fn new(mood: Mood) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { mood, asked: 0 }))
    }

    fn answer(&mut self, request: &Request) -> Answer {
        self.asked += 1;
        let header = |name| request.header(name).unwrap_or_default();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/"));
        assert_eq!(header("x-amz-target"), "AmazonSSM.GetParameter");
        assert_eq!(header("content-type"), "application/x-amz-json-1.1");
        let signature = header("authorization");
        assert!(signature.contains("/eu-west-1/ssm/aws4_request"), "{signature}");
        assert!(signature.contains("SignedHeaders=content-type;host;x-amz-date"), "{signature}");
        let asked: Value = serde_json::from_str(&request.body).unwrap();
        assert_eq!(asked, json!({ "Name": NAME, "WithDecryption": true }));
        match self.mood {
            Mood::Tells(value) => {
                let parameter = json!({ "Name": NAME, "Type": "SecureString", "Value": value, "Version": 1 });
                Answer::Http(200, "", json!({ "Parameter": parameter }).to_string())
            }
            Mood::Refuses(status, kind) => {
                Answer::Http(status, "", json!({ "__type": kind, "message": "because" }).to_string())
            }
            Mood::Rubbish => Answer::Http(200, "", format!("<html>{KEY}")),
            Mood::Silent => Answer::Silence,
        }
    }
}

async fn got(mood: Mood, within: Duration) -> (std::result::Result<String, ParameterError>, Calls) {
    let store = Store::new(mood);
    let address = serve(move |request| store.lock().unwrap().answer(request)).await;
    let calls = Calls::default();
    let parameters = Parameters::new(&config(&format!("http://{address}")), calls.clone(), within);
    (parameters.get(NAME).await.map(|secret| secret.as_str().to_owned()), calls)
}

#[tokio::test]
async fn parameter_is_asked_for_signed_and_decrypted() {
    let (value, calls) = got(Mood::Tells(KEY), WITHIN).await;
    assert_eq!(value.unwrap(), KEY);
    assert_eq!(calls.counts().into_iter().collect::<Vec<_>>(), [(("ssm:GetParameter", Outcome::Done), 1)]);
}

#[tokio::test]
async fn errors_say_what_to_do_and_never_what_came() {
    for (mood, outcome, expected) in [
        (
            Mood::Refuses(400, "AccessDeniedException"),
            Outcome::Unauthorized,
            format!("the instance's role does not allow ssm:GetParameter on {ARN}, or kms:Decrypt on the key"),
        ),
        (
            Mood::Refuses(400, "com.amazonaws.ssm#ParameterNotFound"),
            Outcome::Refused,
            format!(
                "there is no parameter {NAME} in eu-west-1; make it once: aws ssm put-parameter --region eu-west-1"
            ),
        ),
        (
            Mood::Refuses(400, "ThrottlingException"),
            Outcome::Throttled,
            "ssm:GetParameter is throttled".to_owned(),
        ),
        (
            Mood::Refuses(500, "InternalServerError"),
            Outcome::Unavailable,
            "ssm:GetParameter has no answer: InternalServerError".to_owned(),
        ),
        (Mood::Refuses(503, ""), Outcome::Unavailable, "an answer with status 503".to_owned()),
        (Mood::Rubbish, Outcome::Unavailable, "an answer without a value".to_owned()),
    ] {
        let (value, calls) = got(mood, WITHIN).await;
        let error = value.unwrap_err().to_string();
        assert!(error.contains(&expected), "{mood:?}: {error}");
        assert!(!error.contains(KEY), "{error}");
        assert_eq!(calls.counts().into_keys().collect::<Vec<_>>(), [("ssm:GetParameter", outcome)]);
    }
}

#[tokio::test]
async fn silent_service_is_given_up_in_time() {
    let begun = Instant::now();
    let (value, _) = got(Mood::Silent, Duration::from_millis(300)).await;
    assert!(matches!(value, Err(ParameterError::Failed(Failure::Unavailable { .. }))), "{value:?}");
    assert!(begun.elapsed() < WITHIN);
}

#[tokio::test]
async fn answer_without_an_end_is_not_read() {
    let address = serve(|_| Answer::Http(200, "", "x".repeat(1 << 20))).await;
    let parameters = Parameters::new(&config(&format!("http://{address}")), Calls::default(), WITHIN);
    let error = parameters.get(NAME).await.unwrap_err().to_string();
    assert!(error.contains("length limit exceeded"), "{error}");
}

/// Asks moto for something that only an operator does.
fn order(endpoint: &str, action: &str, body: &Value) {
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "30", "-X", "POST", endpoint])
        .args(["-H", &format!("X-Amz-Target: AmazonSSM.{action}")])
        .args(["-H", "Content-Type: application/x-amz-json-1.1"])
        .args([
            "-H",
            "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-west-1/ssm/aws4_request",
        ])
        .args(["-d", &body.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn secure_string_of_moto_is_read() {
    let moto = Moto::start().await;
    let parameters = Parameters::new(&config(&moto.endpoint), Calls::default(), WITHIN * 2);
    let missing = ParameterError::Missing { name: NAME.to_owned(), region: "eu-west-1".to_owned() };
    assert_eq!(parameters.get(NAME).await.unwrap_err(), missing);
    order(&moto.endpoint, "PutParameter", &json!({ "Name": NAME, "Value": KEY, "Type": "SecureString" }));
    assert_eq!(parameters.get(NAME).await.unwrap().as_str(), KEY);
}

/// What an instance says of its fleet.
fn fleet(egret: &Egret) -> Result<Value> {
    let output = egret.try_status()?;
    let status = serde_json::from_str::<Value>(&output.stdout);
    Ok(status.map_or(Value::Null, |status| status["fleet"].clone()))
}

fn wait_fleet(egret: &Egret, what: &str, right: impl Fn(&Value) -> bool) -> Result {
    let waited = wait_for(what, DEADLINE, || Ok(right(&fleet(egret)?)));
    waited
        .map_err(|failure| LabFailure::new(format!("{failure:?}\n{:?}\n{}", fleet(egret), egret.process.log())))
}

#[test]
fn failover_waits_for_the_key_and_begins_with_it_and_nat_does_not_wait() -> Result {
    let vpc = Vpc::new(2, false)?;
    let store = Store::new(Mood::Refuses(400, "AccessDeniedException"));
    let stub = Arc::clone(&store);
    let (address, (stop, thread)) = in_namespace(vpc.lab.router(), move || {
        serve_at("10.0.0.1:0", move |request| stub.lock().unwrap().answer(request))
    })?;
    let endpoint = format!("AWS_ENDPOINT_URL_SSM=http://{address}");
    let config = |index: usize| {
        let config = vpc.config_with(index, KEY, "");
        let mut lines: Vec<String> = config.lines().map(str::to_owned).collect();
        let line = lines.iter_mut().find(|line| line.starts_with("key_file")).expect("it is needed");
        *line = format!("key_parameter = \"{NAME}\"");
        lines.join("\n") + "\n"
    };
    let spawn = |index: usize| vpc.spawn_with(index, &config(index), &[&endpoint]);
    let egrets = [spawn(0)?, spawn(1)?];
    let reason = format!(
        "waits for the peer key: failover.key_parameter: the instance's role does not allow ssm:GetParameter on {ARN}"
    );
    for egret in &egrets {
        wait_fleet(egret, "the reason", |fleet| {
            fleet["health"].as_str().is_some_and(|why| why.starts_with(&reason))
        })?;
        wait_for("readiness", DEADLINE, || Ok(egret.status()?["ready"] == true))?;
    }
    let text = egrets[0].command(&["status"])?.success()?.stdout;
    assert!(text.contains("waits for the peer key"), "{text}");
    assert_eq!(vpc.at_ec2(0), (None, None));
    store.lock().unwrap().mood = Mood::Tells(KEY);
    for (index, egret) in egrets.iter().enumerate() {
        wait_fleet(egret, "both to know each other", |fleet| fleet["peers"][0]["connected"] == true)?;
        wait_for("its gateway", DEADLINE, || Ok(vpc.at_ec2(index) == (Some(index), Some(index))))?;
    }
    // A reload reads it anew, although the file is the same; one that is wrong changes nothing.
    store.lock().unwrap().mood = Mood::Tells("not a key");
    let asked = store.lock().unwrap().asked;
    egrets[0].reload(&config(0))?;
    wait_for("the key to be read", DEADLINE, || Ok(store.lock().unwrap().asked > asked))?;
    wait_for("a complaint", DEADLINE, || Ok(egrets[0].process.log().contains("the old one stays")))?;
    assert_eq!(fleet(&egrets[0])?["peers"][0]["connected"], true);
    for egret in &egrets {
        assert!(!egret.process.log().contains(KEY) && !egret.process.log().contains("not a key"));
    }
    drop((egrets, stop));
    let _ = thread.join();
    Ok(())
}
