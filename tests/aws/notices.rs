//! Notices of the metadata service, and what the daemon makes of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use egret::aws::{Imds, Notice, Notices, SpotAction};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::fleet::{GROUP, OURSELVES};
use crate::http::{Answer, serve};
use crate::imds::{self, Tree};
use crate::lab::{DEADLINE, Egret, INTERNET, Lab, Options, PUBLIC, Result, Web, ask, connect, inside};
use crate::site::Site;

const SPOT: &str = "spot/instance-action";
const TARGET_STATE: &str = "autoscaling/target-lifecycle-state";
const REBALANCE: &str = "events/recommendations/rebalance";
const MAINTENANCE: &str = "events/maintenance/scheduled";
const TERMINATE: &str = r#"{"action": "terminate", "time": "2030-09-18T08:22:00Z"}"#;
const REBOOT: &str = r#"[{"NotBefore": "21 Jan 2030 09:00:43 GMT", "Code": "system-reboot",
    "Description": "scheduled reboot", "EventId": "instance-event-0d59937288b749b32",
    "NotAfter": "21 Jan 2030 09:17:23 GMT", "State": "active"}]"#;

struct World {
    tree: Arc<Mutex<Option<Tree>>>,
    asked: Arc<AtomicUsize>,
    told: watch::Receiver<Vec<Notice>>,
}

impl World {
    async fn new() -> Self {
        let (tree, asked) = (Arc::new(Mutex::new(Some(imds::tree()))), Arc::new(AtomicUsize::new(0)));
        let (stub, count) = (Arc::clone(&tree), Arc::clone(&asked));
        let address = serve(move |request| {
            count.fetch_add(1, Ordering::Relaxed);
            stub.lock().unwrap().as_ref().map_or(Answer::Closed, |tree| imds::answer(tree, request))
        });
        let imds = Imds::at(&format!("http://{}", address.await)).unwrap();
        let notices = Notices::new(imds, Duration::from_millis(5));
        let told = notices.told();
        tokio::spawn(notices.run());
        Self { tree, asked, told }
    }

    fn tell(&self, path: &str, text: Option<&str>) {
        let mut tree = self.tree.lock().unwrap();
        let tree = tree.get_or_insert_with(imds::tree);
        match text {
            Some(text) => tree.insert(path.to_owned(), text.to_owned()),
            None => tree.remove(path),
        };
    }

    async fn next(&mut self) -> Vec<Notice> {
        let changed = tokio::time::timeout(Duration::from_secs(20), self.told.changed());
        changed.await.expect("a change in time").unwrap();
        self.told.borrow_and_update().clone()
    }

    /// Passes that begin after this call.
    async fn further_passes(&self, count: usize) {
        let until = self.asked.load(Ordering::Relaxed) + 4 * (count + 1);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.asked.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn at(text: &str) -> SystemTime {
    humantime::parse_rfc3339(text).unwrap()
}

fn spot() -> Notice {
    Notice::SpotInterruption { action: SpotAction::Terminate, at: at("2030-09-18T08:22:00Z") }
}

#[tokio::test]
async fn each_notice_is_told_once_and_again_when_it_is_withdrawn() {
    let mut world = World::new().await;
    let rebalance = r#"{"noticeTime": "2030-09-18T08:20:00Z"}"#;
    let recommendation = Notice::RebalanceRecommendation { noticed: at("2030-09-18T08:20:00Z") };
    let reboot =
        Notice::Maintenance { code: "system-reboot".to_owned(), not_before: at("2030-01-21T09:00:43Z") };
    for (path, text, notice, is_the_end) in [
        (SPOT, TERMINATE, spot(), true),
        (REBALANCE, rebalance, recommendation, false),
        (TARGET_STATE, "Terminated", Notice::Termination, true),
        (MAINTENANCE, REBOOT, reboot, false),
    ] {
        assert_eq!(notice.is_the_end(), is_the_end);
        world.tell(path, Some(text));
        assert_eq!(world.next().await, [notice]);
        world.further_passes(3).await;
        assert!(!world.told.has_changed().unwrap(), "{path}: told once");
        world.tell(path, None);
        assert_eq!(world.next().await, []);
    }
    world.tell(TARGET_STATE, Some("InService"));
    world.further_passes(3).await;
    assert!(!world.told.has_changed().unwrap(), "nothing comes of being in service");
}

#[tokio::test]
async fn malformed_notice_changes_nothing_and_keeps_none_of_the_others() {
    let mut world = World::new().await;
    world.tell(SPOT, Some(TERMINATE));
    assert_eq!(world.next().await, [spot()]);
    for text in ["", "<html>", "{}", r#"{"action": "terminate", "time": "now"}"#] {
        world.tell(SPOT, Some(text));
        world.further_passes(2).await;
        assert!(!world.told.has_changed().unwrap(), "{text}: kept as it was");
        world.tell(TARGET_STATE, Some("Terminated"));
        assert_eq!(world.next().await, [spot(), Notice::Termination], "{text}");
        world.tell(TARGET_STATE, None);
        assert_eq!(world.next().await, [spot()]);
    }
}

#[tokio::test]
async fn a_service_that_fails_withdraws_nothing() {
    let mut world = World::new().await;
    world.tell(SPOT, Some(TERMINATE));
    assert_eq!(world.next().await, [spot()]);
    *world.tree.lock().unwrap() = None;
    world.further_passes(2).await;
    assert!(!world.told.has_changed().unwrap());
    world.tell(REBALANCE, None);
    assert_eq!(world.next().await, [], "it is well again, and has no notice");
}

/// A listener, whose server is the lab's first client.
const LISTENER: &str = "\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [\"10.0.101.10:5000\"]\n\
                        deregistration_delay = \"20s\"\n";

fn listener(mode: &str) -> String {
    LISTENER.replace("10.0.101.10", &Lab::client_address(1).to_string()) + &format!("mode = \"{mode}\"\n")
}

fn wait_for_notices(lab: &Lab, egret: &Egret, wanted: &Value) -> Result {
    lab.nat().wait_for(&format!("the notices {wanted}"), || {
        let status = egret.try_status()?;
        let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        Ok(status.get("notices").unwrap_or(&json!([])) == wanted)
    })
}

fn asked(lab: &Lab) -> Result<std::io::Result<String>> {
    inside(lab.internet(), || ask(PUBLIC, 5000))
}

fn wait_answer(lab: &Lab) -> Result {
    lab.nat().wait_for("an answer of the target", || Ok(asked(lab)?.is_ok_and(|answer| answer == "server 1")))
}

/// A connection to the listener, which is the only one there is.
fn open(lab: &Lab, egret: &Egret) -> Result<TcpStream> {
    let counted = |count| {
        lab.nat().wait_for(&format!("{count} connections"), || {
            Ok(egret.status()?["listeners"][0]["connections"].as_u64() == Some(count))
        })
    };
    // Those before it may take a moment to end.
    counted(0)?;
    let connection = connect(lab, 5000, 1)?.remove(0);
    counted(1)?;
    Ok(connection)
}

fn interruption_in(mode: &str) -> Result {
    let lab = Lab::new(Options::default())?;
    let server = Web::start(lab.client(1), 5000)?;
    server.write("index.html", "server 1\n")?;
    let _web = Web::start(lab.internet(), 80)?;
    let site = Site::start(lab.nat())?;
    let mut egret = site.spawn(lab.nat(), &listener(mode))?;
    wait_answer(&lab)?;
    let mut open = open(&lab, &egret)?;
    site.tell(SPOT, Some(TERMINATE));
    let notice =
        json!([{ "kind": "spot_interruption", "detail": "terminate", "at": 1_915_950_120, "end": true }]);
    wait_for_notices(&lab, &egret, &notice)?;
    let status = egret.status()?;
    assert_eq!((&status["draining"], &status["ready"]), (&json!(true), &json!(true)));
    let text = egret.command(&["status"])?.success()?.stdout;
    assert!(text.contains("notice      spot interruption (terminate), 2030-09-18T08:22:00Z\n"), "{text}");
    assert!(text.contains("draining    listeners take no more connections\n"), "{text}");
    lab.nat().wait_for("new connections to be refused", || Ok(asked(&lab)?.is_err()))?;
    // A reload does not open listeners that an end is coming for.
    egret.reload(&format!("{}\n[nat]\nexternal_mtu = 1400\n", listener(mode)))?;
    egret.process.wait_for_log("configuration reloaded")?;
    assert!(asked(&lab)?.is_err());
    // What is open goes on, and NAT as well.
    open.set_read_timeout(Some(DEADLINE))?;
    open.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    open.read_to_string(&mut answer)?;
    assert!(answer.ends_with("server 1\n"), "{answer}");
    drop(open);
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    egret.process.wait_for_log("forwarding has drained")?;
    // An instance that hibernates goes on where it was.
    site.tell(SPOT, None);
    wait_for_notices(&lab, &egret, &json!([]))?;
    wait_answer(&lab)?;
    assert_eq!(egret.status()?["draining"], json!(false));
    let log = egret.process.log();
    assert_eq!(log.matches("this instance is about to end").count(), 1, "{log}");
    assert!(egret.stop(DEADLINE)?.success(), "{}", egret.process.log());
    Ok(())
}

#[test]
fn spot_interruption_drains_the_proxy_and_nat_goes_on() -> Result {
    interruption_in("proxy")
}

#[test]
fn spot_interruption_drains_listeners_of_the_engine_and_nat_goes_on() -> Result {
    interruption_in("nat")
}

#[test]
fn a_stop_waits_for_what_a_notice_has_begun_to_drain() -> Result {
    let lab = Lab::new(Options::default())?;
    let server = Web::start(lab.client(1), 5000)?;
    server.write("index.html", "server 1\n")?;
    let site = Site::start(lab.nat())?;
    let mut egret = site.spawn(lab.nat(), &listener("proxy"))?;
    wait_answer(&lab)?;
    let mut open = open(&lab, &egret)?;
    site.tell(TARGET_STATE, Some("Terminated"));
    wait_for_notices(&lab, &egret, &json!([{ "kind": "termination", "end": true }]))?;
    egret.process.signal(nix::sys::signal::Signal::SIGTERM)?;
    egret.process.wait_for_log("waiting for forwarded connections to end")?;
    open.set_read_timeout(Some(DEADLINE))?;
    open.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    open.read_to_string(&mut answer)?;
    assert!(answer.ends_with("server 1\n"), "{answer}");
    assert!(egret.process.wait(DEADLINE)?.success(), "{}", egret.process.log());
    Ok(())
}

#[test]
fn what_is_no_end_is_shown_and_drains_nothing() -> Result {
    let lab = Lab::new(Options::default())?;
    let server = Web::start(lab.client(1), 5000)?;
    server.write("index.html", "server 1\n")?;
    let site = Site::start(lab.nat())?;
    site.tell(REBALANCE, Some(r#"{"noticeTime": "2030-09-18T08:20:00Z"}"#));
    site.tell(MAINTENANCE, Some(REBOOT));
    let mut egret = site.spawn(lab.nat(), &listener("proxy"))?;
    let notices = json!([
        { "kind": "rebalance_recommendation", "at": 1_915_950_000, "end": false },
        { "kind": "maintenance", "detail": "system-reboot", "at": 1_895_216_443, "end": false },
    ]);
    wait_for_notices(&lab, &egret, &notices)?;
    egret.process.wait_for_log("notice of what happens to this instance")?;
    assert_eq!(egret.status()?["draining"], json!(false));
    wait_answer(&lab)
}

#[test]
fn hooks_are_completed_when_it_is_of_use_and_when_it_has_drained() -> Result {
    let lab = Lab::new(Options::default())?;
    let server = Web::start(lab.client(1), 5000)?;
    server.write("index.html", "server 1\n")?;
    let site = Site::start(lab.nat())?;
    site.fleet(|fleet| fleet.state = Some("Pending:Wait"));
    site.tell(TARGET_STATE, Some("InService"));
    let hooks = "[aws]\nlaunching_hook = \"ready\"\nterminating_hook = \"drained\"\n";
    let mut egret = site.spawn(lab.nat(), &format!("{hooks}{}", listener("proxy")))?;
    let completed = |hook: &str| [hook, GROUP, OURSELVES, "CONTINUE"].map(str::to_owned);
    lab.nat().wait_for("the launching hook", || Ok(!site.fleet(|fleet| fleet.completed.is_empty())))?;
    assert_eq!(site.fleet(|fleet| fleet.completed.clone()), [completed("ready")]);
    // It is told a moment after it was done.
    egret.process.wait_for_log("lifecycle action completed")?;
    let log = egret.process.log();
    assert!(log.find(" ready") < log.find("lifecycle action completed"), "{log}");
    wait_answer(&lab)?;
    let open = open(&lab, &egret)?;
    site.fleet(|fleet| fleet.state = Some("Terminating:Wait"));
    site.tell(TARGET_STATE, Some("Terminated"));
    wait_for_notices(&lab, &egret, &json!([{ "kind": "termination", "end": true }]))?;
    assert_eq!(site.fleet(|fleet| fleet.completed.len()), 1, "a connection is still open");
    drop(open);
    lab.nat().wait_for("the terminating hook", || Ok(site.fleet(|fleet| fleet.completed.len()) == 2))?;
    assert_eq!(site.fleet(|fleet| fleet.completed.clone()), [completed("ready"), completed("drained")]);
    lab.nat().wait_for("it to be told", || {
        Ok(egret.process.log().matches("lifecycle action completed").count() == 2)
    })?;
    assert!(egret.stop(DEADLINE)?.success());
    let log = egret.process.log();
    assert!(log.find("forwarding has drained") < log.rfind("lifecycle action completed"), "{log}");
    Ok(())
}
