use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use egret::aws::{SourceDestCheck, State, Timing};

use crate::http::{Answer, Request, serve};

const ENI: &str = "eni-0123456789abcdef0";
pub const OTHER_ENI: &str = "eni-0fedcba9876543210";
pub const TIMING: Timing = Timing {
    interval: Duration::from_millis(20),
    call_timeout: Duration::from_millis(500),
    backoff: Duration::from_millis(10),
    max_backoff: Duration::from_millis(40),
    log_again: Duration::from_mins(10),
};

/// EC2 as far as the checks of two interfaces go.
#[derive(Debug)]
pub struct Ec2 {
    pub check: bool,
    /// Of the other interface.
    pub other_check: bool,
    pub reads: usize,
    pub writes: usize,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    Closed,
    Silence,
    Rubbish,
    OtherInterface,
    /// Of every action.
    Throttled,
    /// Of the action that is named.
    Unauthorized(&'static str),
}

impl Ec2 {
    pub fn new(check: bool, fault: Fault) -> Self {
        Self { check, other_check: check, reads: 0, writes: 0, fault }
    }

    pub fn answer(&mut self, request: &Request) -> Answer {
        assert!(request.header("authorization").is_some_and(|value| value.contains("/eu-west-1/ec2/")));
        let (is_write, eni) = match form(request, "Action") {
            Some("DescribeNetworkInterfaces") => {
                self.reads += 1;
                (false, form(request, "NetworkInterfaceId.1"))
            }
            Some("ModifyNetworkInterfaceAttribute") => {
                assert_eq!(form(request, "SourceDestCheck.Value"), Some("false"));
                self.writes += 1;
                (true, form(request, "NetworkInterfaceId"))
            }
            other => panic!("unexpected action {other:?}"),
        };
        let (eni, check) = match eni {
            Some(ENI) => (ENI, &mut self.check),
            Some(OTHER_ENI) => (OTHER_ENI, &mut self.other_check),
            other => panic!("unexpected interface {other:?}"),
        };
        match self.fault {
            Fault::Closed => return Answer::Closed,
            Fault::Silence => return Answer::Silence,
            Fault::Rubbish => return Answer::Http(200, "", "<html>out of order".into()),
            Fault::Throttled => return error(503, "RequestLimitExceeded", "Request limit exceeded."),
            Fault::Unauthorized(action) if form(request, "Action") == Some(action) => {
                return error(403, "UnauthorizedOperation", "Encoded authorization failure message: x7Yz");
            }
            Fault::Unauthorized(_) | Fault::OtherInterface | Fault::None => {}
        }
        if is_write {
            *check = false;
            return xml("ModifyNetworkInterfaceAttribute", "<return>true</return>");
        }
        let eni = if self.fault == Fault::OtherInterface { OTHER_ENI } else { eni };
        xml(
            "DescribeNetworkInterfaces",
            &format!(
                "<networkInterfaceSet><item><networkInterfaceId>{eni}</networkInterfaceId>\
                 <sourceDestCheck>{check}</sourceDestCheck></item></networkInterfaceSet>"
            ),
        )
    }
}

fn xml(action: &str, content: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>{content}</{action}Response>"
    );
    Answer::Http(200, "content-type: text/xml\r\n", body)
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code>\
         <Message>{message}</Message></Error></Errors><RequestID>ea966190</RequestID></Response>"
    );
    Answer::Http(status, "content-type: text/xml\r\n", body)
}

/// A field of an EC2 query; none of those that are looked at here needs unescaping.
fn form<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    let mut fields = request.body.split('&').filter_map(|field| field.split_once('='));
    fields.find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// The task against a stub that can be looked at and changed while it runs.
struct World {
    ec2: Arc<Mutex<Ec2>>,
    state: tokio::sync::watch::Receiver<State>,
}

impl World {
    async fn new(check: bool, fault: Fault) -> Self {
        let ec2 = Arc::new(Mutex::new(Ec2::new(check, fault)));
        let stub = Arc::clone(&ec2);
        let address = serve(move |request| stub.lock().unwrap().answer(request)).await;
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(format!("http://{address}"))
            .build();
        let task = SourceDestCheck::new(&config, ENI, TIMING);
        let state = task.state();
        assert_eq!(*state.borrow(), State::Unknown);
        tokio::spawn(task.run());
        Self { ec2, state }
    }

    fn ec2<T>(&self, look: impl FnOnce(&mut Ec2) -> T) -> T {
        look(&mut self.ec2.lock().unwrap())
    }

    /// Waits for a condition on the stub.
    async fn until(&self, condition: impl Fn(&Ec2) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.ec2(|ec2| condition(ec2)) {
            assert!(Instant::now() < deadline, "{:?} {:?}", self.ec2, *self.state.borrow());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until_off(&mut self) {
        let off = self.state.wait_for(|state| *state == State::Off);
        tokio::time::timeout(Duration::from_secs(20), off).await.expect("off in time").unwrap();
    }

    async fn failure(&mut self) -> String {
        let failed = self.state.wait_for(|state| matches!(state, State::Failed(_)));
        let state = tokio::time::timeout(Duration::from_secs(20), failed).await.expect("failed in time");
        match &*state.unwrap() {
            State::Failed(reason) => reason.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Passes that begin after this call, so that what came before has been answered.
    async fn further_reads(&self, count: usize) {
        let now = self.ec2(|ec2| ec2.reads);
        self.until(|ec2| ec2.reads > now + count).await;
    }
}

#[tokio::test]
async fn the_check_is_switched_off_and_later_passes_write_nothing() {
    let mut world = World::new(true, Fault::None).await;
    world.until_off().await;
    assert!(!world.ec2(|ec2| ec2.check));
    world.further_reads(3).await;
    assert_eq!(world.ec2(|ec2| ec2.writes), 1);
}

#[tokio::test]
async fn a_check_that_is_off_is_left_alone() {
    let mut world = World::new(false, Fault::None).await;
    world.until_off().await;
    world.further_reads(3).await;
    assert_eq!(world.ec2(|ec2| ec2.writes), 0);
}

#[tokio::test]
async fn drift_is_put_back() {
    let mut world = World::new(true, Fault::None).await;
    world.until_off().await;
    world.ec2(|ec2| ec2.check = true);
    world.until(|ec2| !ec2.check).await;
    world.further_reads(2).await;
    assert_eq!(world.ec2(|ec2| ec2.writes), 2);
    assert_eq!(*world.state.borrow(), State::Off);
}

#[tokio::test]
async fn the_action_that_the_role_lacks_is_named() {
    for (action, writes) in [("DescribeNetworkInterfaces", 0), ("ModifyNetworkInterfaceAttribute", 1)] {
        let mut world = World::new(true, Fault::Unauthorized(action)).await;
        assert_eq!(world.failure().await, format!("the instance's role does not allow ec2:{action}"));
        assert!(world.ec2(|ec2| ec2.check && ec2.writes >= writes));
        world.ec2(|ec2| ec2.fault = Fault::None);
        world.until_off().await;
        assert!(!world.ec2(|ec2| ec2.check));
    }
}

#[tokio::test]
async fn every_failure_is_a_state_and_is_recovered_from() {
    for (fault, named) in [
        (Fault::Closed, "ec2:DescribeNetworkInterfaces has no answer: dispatch failure: "),
        (Fault::Silence, "ec2:DescribeNetworkInterfaces has no answer: request has timed out: "),
        (Fault::Rubbish, "ec2:DescribeNetworkInterfaces has no answer: "),
        (Fault::Throttled, "ec2:DescribeNetworkInterfaces is throttled: RequestLimitExceeded"),
        (
            Fault::OtherInterface,
            "ec2:DescribeNetworkInterfaces does not show the interface's source/dest check",
        ),
    ] {
        let mut world = World::new(true, fault).await;
        let reason = world.failure().await;
        assert!(reason.starts_with(named), "{fault:?}: {reason}");
        world.further_reads(2).await;
        assert!(world.ec2(|ec2| ec2.check && ec2.writes == 0), "{fault:?}");
        world.ec2(|ec2| ec2.fault = Fault::None);
        world.until_off().await;
        assert_eq!(world.ec2(|ec2| (ec2.check, ec2.writes)), (false, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn an_outage_after_success_is_shown_and_recovered_from() {
    let mut world = World::new(true, Fault::None).await;
    world.until_off().await;
    world.ec2(|ec2| (ec2.fault, ec2.check) = (Fault::Closed, true));
    world.failure().await;
    world.ec2(|ec2| ec2.fault = Fault::None);
    world.until_off().await;
    assert_eq!(world.ec2(|ec2| (ec2.check, ec2.writes)), (false, 2));
}
