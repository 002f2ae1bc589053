//! What is desired at EC2 is had, and kept, whatever EC2 answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use egret::aws::{
    Calls, Check, Desired, Ec2 as Client, ElasticIps, Reconciler, Routes, State, Tables, Timing, Way,
};
use tokio::sync::{Notify, watch};

use crate::ec2::{
    ALL, ALLOCATION, ENI, Ec2, Fault, OTHER_ALLOCATION, OTHER_ENI, OTHER_TABLE, OTHER_VPC, TABLE, VPC, WRITES,
};
use crate::http::serve;

pub const TIMING: Timing = Timing {
    interval: Duration::from_millis(30),
    backoff: Duration::from_millis(10),
    max_backoff: Duration::from_millis(40),
    log_again: Duration::from_mins(10),
};
/// Not for want of time on a busy machine, but where nothing is answered, a call is given up soon.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const CALL_TIMEOUT_IN_SILENCE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);
const ANYWHERE: &str = "0.0.0.0/0";

/// Both interfaces forward; routes of one table lead to the other interface, and the first has both Elastic IPs.
pub fn desired() -> Desired {
    let routes = Routes {
        eni: OTHER_ENI.to_owned(),
        vpc: VPC.to_owned(),
        tables: Tables::Ids(vec![TABLE.to_owned()]),
        destinations: vec![ANYWHERE.parse().unwrap(), "198.51.100.0/24".parse().unwrap()],
    };
    let pool = vec![ALLOCATION.to_owned(), OTHER_ALLOCATION.to_owned()];
    Desired {
        forwarding: [ENI.to_owned(), OTHER_ENI.to_owned()].into(),
        routes: Some(routes),
        elastic_ips: Some(ElasticIps { eni: ENI.to_owned(), pool, count: 2 }),
        ending: false,
    }
}

pub fn config(endpoint: &str) -> SdkConfig {
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(endpoint)
        .build()
}

/// What somebody does to what was had.
type Drift = fn(&mut Ec2);

/// A reconciler against a stub that can be looked at and changed while it runs.
struct Rig {
    ec2: Arc<Mutex<Ec2>>,
    state: watch::Receiver<State>,
    desired: watch::Sender<Desired>,
    refresh: Arc<Notify>,
}

impl Rig {
    async fn new(ec2: Ec2, desired: Desired) -> Self {
        Self::timed(ec2, desired, TIMING).await
    }

    async fn timed(ec2: Ec2, desired: Desired, timing: Timing) -> Self {
        let is_silent = matches!(ec2.fault, Fault::Silence(_));
        let within = if is_silent { CALL_TIMEOUT_IN_SILENCE } else { CALL_TIMEOUT };
        let ec2 = Arc::new(Mutex::new(ec2));
        let stub = Arc::clone(&ec2);
        let address = serve(move |request| stub.lock().unwrap().answer(request)).await;
        let client = Client::new(&config(&format!("http://{address}")), Calls::default(), within);
        let (desired, receiver) = watch::channel(desired);
        let refresh = Arc::<Notify>::default();
        let reconciler = Reconciler::new(client, receiver, Arc::clone(&refresh), timing);
        let state = reconciler.state();
        assert_eq!(*state.borrow(), State::default());
        tokio::spawn(reconciler.run());
        Self { ec2, state, desired, refresh }
    }

    fn ec2<T>(&self, look: impl FnOnce(&mut Ec2) -> T) -> T {
        look(&mut self.ec2.lock().unwrap())
    }

    /// Waits for a condition on the state.
    async fn until(&mut self, what: &str, condition: impl FnMut(&State) -> bool) -> State {
        let state = tokio::time::timeout(DEADLINE, self.state.wait_for(condition)).await;
        let state = state.map(|state| state.unwrap().clone());
        state.unwrap_or_else(|_| panic!("{what}: {:#?}\n{:#?}", *self.state.borrow(), self.ec2))
    }

    async fn until_had(&mut self) {
        self.until("all is had", is_had).await;
    }

    async fn failure(&mut self) -> String {
        let state = self.until("a failure", |state| !state.failures.is_empty()).await;
        state.failures[0].to_string()
    }

    /// Waits for passes that begin after this call, so that what came before has been answered.
    async fn further_passes(&self, count: usize) {
        let passes = || self.ec2(|ec2| ec2.made("DescribeNetworkInterfaces"));
        let (deadline, enough) = (Instant::now() + DEADLINE, passes() + count + 1);
        while passes() < enough {
            assert!(Instant::now() < deadline, "{:?}", *self.state.borrow());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Whether all of [`desired`] is had, and nothing is wrong.
fn is_had(state: &State) -> bool {
    state.checks.len() == 2
        && state.checks.values().all(|check| *check == Check::Off)
        && state.routes.len() == 2
        && state.routes.iter().all(|route| route.way == Way::Ours)
        && state.elastic_ips.len() == 2
        && state.problems.is_empty()
        && state.failures.is_empty()
}

/// What [`is_had`] says, at EC2 itself.
fn assert_had(ec2: &mut Ec2) {
    assert!(!*ec2.check(ENI) && !*ec2.check(OTHER_ENI));
    assert_eq!(ec2.route(TABLE, ANYWHERE), Some(OTHER_ENI));
    assert_eq!(ec2.route(TABLE, "198.51.100.0/24"), Some(OTHER_ENI));
    assert_eq!(ec2.used(ALLOCATION), Some((ENI, [10, 0, 0, 10].into())));
    assert_eq!(ec2.used(OTHER_ALLOCATION), Some((ENI, [10, 0, 0, 30].into())));
    assert_eq!(ec2.world.interfaces[ENI].addresses.len(), 2, "one was assigned");
}

#[tokio::test]
async fn an_empty_world_is_brought_to_work_and_later_passes_write_nothing() {
    let mut rig = Rig::new(Ec2::new(), desired()).await;
    rig.until_had().await;
    rig.ec2(assert_had);
    // Two checks, two routes, one private address and two Elastic IPs; the checks before all else.
    let calls = rig.ec2(|ec2| ec2.calls.clone());
    assert_eq!(
        calls[..3],
        ["DescribeNetworkInterfaces", "ModifyNetworkInterfaceAttribute", "ModifyNetworkInterfaceAttribute"]
    );
    rig.further_passes(3).await;
    let (writes, before) = rig.ec2(|ec2| (ec2.writes(), ec2.calls.len()));
    assert_eq!(writes, 7);
    rig.further_passes(3).await;
    assert_eq!(rig.ec2(|ec2| ec2.writes()), 7);
    let steady = rig.ec2(|ec2| ec2.calls[before..].to_vec());
    // Of the passes that were seen as a whole; the two last calls of each are made at once.
    let passes: Vec<_> = steady.split(|action| action == "DescribeNetworkInterfaces").collect();
    for pass in &passes[1..passes.len() - 1] {
        let others: BTreeSet<&str> = pass.iter().map(String::as_str).collect();
        assert_eq!(
            (pass.len(), others),
            (2, ["DescribeAddresses", "DescribeRouteTables"].into()),
            "{steady:?}"
        );
    }
}

#[tokio::test]
async fn tables_that_are_not_named_stay_untouched() {
    let ec2 = Ec2::new();
    let before = ec2.world.tables.clone();
    let mut rig = Rig::new(ec2, desired()).await;
    rig.until_had().await;
    rig.further_passes(2).await;
    let after = rig.ec2(|ec2| ec2.world.tables.clone());
    for id in [OTHER_TABLE, "rtb-00000000"] {
        assert_eq!(after[id], before[id], "{id}");
    }
}

#[tokio::test]
async fn tagged_tables_of_the_own_vpc_are_found_on_every_page_and_no_others() {
    let mut ec2 = Ec2::new();
    let tag = |tables: &mut BTreeMap<String, crate::ec2::Table>, id: &str, value: &str| {
        tables.get_mut(id).unwrap().tags.insert("egret:gateway".to_owned(), value.to_owned());
    };
    for number in 1..=5 {
        let table = ec2.world.tables[TABLE].clone();
        ec2.world.tables.insert(format!("rtb-1000000{number}"), table);
        tag(&mut ec2.world.tables, &format!("rtb-1000000{number}"), "az-a");
    }
    tag(&mut ec2.world.tables, OTHER_TABLE, "az-b");
    tag(&mut ec2.world.tables, "rtb-00000000", "az-a");
    let mut wanted = desired();
    wanted.elastic_ips = None;
    let tags = [("egret:gateway".to_owned(), "az-a".to_owned())].into();
    wanted.routes.as_mut().unwrap().tables = Tables::Tagged { vpc: VPC.to_owned(), tags };
    let mut rig = Rig::new(ec2, wanted).await;
    rig.until("ten routes", |state| {
        state.routes.len() == 10 && state.routes.iter().all(|route| route.way == Way::Ours)
    })
    .await;
    rig.further_passes(2).await;
    rig.ec2(|ec2| {
        for number in 1..=5 {
            assert_eq!(ec2.route(&format!("rtb-1000000{number}"), ANYWHERE), Some(OTHER_ENI));
        }
        for id in [TABLE, OTHER_TABLE, "rtb-00000000"] {
            assert_eq!(ec2.route(id, ANYWHERE), None, "{id}");
        }
        assert_eq!(ec2.made("CreateRoute"), 10);
        assert_eq!(ec2.made("DescribeAddresses"), 0, "nobody wants Elastic IPs");
    });
}

#[tokio::test]
async fn without_routes_and_addresses_only_the_checks_are_looked_at() {
    let wanted = Desired { forwarding: [ENI.to_owned()].into(), ..Desired::default() };
    let mut rig = Rig::new(Ec2::new(), wanted).await;
    rig.until("off", |state| state.checks.get(ENI) == Some(&Check::Off)).await;
    rig.further_passes(2).await;
    rig.ec2(|ec2| {
        assert!(*ec2.check(OTHER_ENI), "not ours");
        assert_eq!((ec2.reads(), ec2.writes()), (ec2.made("DescribeNetworkInterfaces"), 1));
    });
}

#[tokio::test]
async fn drift_of_each_thing_is_put_back() {
    let mut rig = Rig::new(Ec2::new(), desired()).await;
    rig.until_had().await;
    let drifts: [(&str, Drift); 7] = [
        ("check", |ec2| *ec2.check(ENI) = true),
        ("no route", |ec2| ec2.world.tables.get_mut(TABLE).unwrap().routes.clear()),
        ("another interface", |ec2| ec2.set_route(TABLE, ANYWHERE, "eni-00000000", true)),
        ("a NAT gateway", |ec2| ec2.set_route(TABLE, ANYWHERE, "nat-0123456789abcdef0", true)),
        ("black hole", |ec2| ec2.set_route(TABLE, ANYWHERE, "eni-00000000", false)),
        ("own black hole", |ec2| ec2.set_route(TABLE, "198.51.100.0/24", OTHER_ENI, false)),
        ("address", |ec2| ec2.world.elastic_ips.get_mut(OTHER_ALLOCATION).unwrap().used = None),
    ];
    for (what, drift) in drifts {
        let writes = rig.ec2(|ec2| {
            drift(ec2);
            ec2.writes()
        });
        rig.further_passes(2).await;
        rig.until(what, is_had).await;
        rig.ec2(|ec2| {
            assert_had(ec2);
            let expected = if what == "no route" { 2 } else { 1 };
            assert_eq!(ec2.writes() - writes, expected, "{what}");
        });
    }
}

#[tokio::test]
async fn what_must_not_be_touched_is_a_problem_and_stays() {
    let mut ec2 = Ec2::new();
    ec2.set_route(TABLE, ANYWHERE, "igw-0123456789abcdef0", true);
    ec2.set_route(TABLE, "198.51.100.0/24", "tgw-0123456789abcdef0", true);
    ec2.world.elastic_ips.get_mut(ALLOCATION).unwrap().used =
        Some(("eni-00000000".into(), [10, 0, 9, 9].into()));
    *ec2.check(ENI) = false;
    *ec2.check(OTHER_ENI) = false;
    let before = ec2.world.clone();
    let mut wanted = desired();
    let tables = [TABLE, "rtb-00000000", "rtb-0000dead"].map(str::to_owned).to_vec();
    wanted.routes.as_mut().unwrap().tables = Tables::Ids(tables);
    let pool = [ALLOCATION, "eipalloc-0000dead"].map(str::to_owned).to_vec();
    wanted.elastic_ips.as_mut().unwrap().pool = pool;
    let mut rig = Rig::new(ec2, wanted).await;
    let state = rig.until("problems", |state| !state.problems.is_empty()).await;
    let problems: Vec<String> = state.problems.iter().map(ToString::to_string).collect();
    let problems = problems.join("\n");
    for named in [
        "leads to igw-0123456789abcdef0: a public subnet's",
        "leads to tgw-0123456789abcdef0, left alone",
        &format!("rtb-00000000 is in {OTHER_VPC}"),
        "no route table rtb-0000dead; correct aws.route_tables",
        "no Elastic IP eipalloc-0000dead; correct aws.elastic_ips",
        "2 more Elastic IPs are wanted",
    ] {
        assert!(problems.contains(named), "{named}: {problems}");
    }
    assert_eq!(state.failures, []);
    rig.further_passes(2).await;
    rig.ec2(|ec2| assert_eq!((&ec2.world, ec2.writes()), (&before, 0)));
    // Whoever lets go of it, lets us have it.
    rig.ec2(|ec2| ec2.world.elastic_ips.get_mut(ALLOCATION).unwrap().used = None);
    rig.until("it is had", |state| state.elastic_ips.len() == 1).await;
}

#[tokio::test]
async fn an_elastic_ip_that_another_takes_in_between_is_left_and_the_next_one_taken() {
    let mut ec2 = Ec2::new();
    // What the other did does not show yet.
    ec2.fault = Fault::Error("AssociateAddress", 400, "Resource.AlreadyAssociated");
    let mut wanted = desired();
    wanted.elastic_ips.as_mut().unwrap().count = 1;
    let mut rig = Rig::new(ec2, wanted).await;
    assert!(rig.failure().await.starts_with("ec2:AssociateAddress refused: Resource.AlreadyAssociated"));
    rig.ec2(|ec2| {
        let used = Some(("eni-00000000".to_owned(), [10, 0, 9, 9].into()));
        ec2.world.elastic_ips.get_mut(ALLOCATION).unwrap().used = used;
        ec2.fault = Fault::None;
    });
    let state = rig.until("the next", |state| !state.elastic_ips.is_empty()).await;
    assert_eq!(state.elastic_ips[0].allocation, OTHER_ALLOCATION);
    assert_eq!(rig.ec2(|ec2| ec2.used(ALLOCATION).unwrap().0.to_owned()), "eni-00000000");
}

#[tokio::test]
async fn what_shows_late_is_not_asked_for_twice() {
    let mut ec2 = Ec2::new();
    ec2.lag = Duration::from_millis(300);
    let mut rig = Rig::new(ec2, desired()).await;
    // What was written is believed, then not shown, then shown for good.
    let deadline = Instant::now() + DEADLINE;
    loop {
        rig.until_had().await;
        let writes = rig.ec2(|ec2| ec2.writes());
        rig.further_passes(25).await;
        if rig.ec2(|ec2| ec2.writes()) == writes {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", rig.ec2);
    }
    rig.until_had().await;
    rig.ec2(assert_had);
    assert_eq!(rig.ec2(|ec2| ec2.made("AssignPrivateIpAddresses")), 1);
}

#[tokio::test]
async fn each_action_that_the_role_lacks_is_named_and_the_others_go_on() {
    let reads = ["DescribeNetworkInterfaces", "DescribeRouteTables", "DescribeAddresses"];
    for action in reads.into_iter().chain(WRITES) {
        let mut ec2 = Ec2::with(Fault::Error(action, 403, "UnauthorizedOperation"));
        ec2.set_route(TABLE, ANYWHERE, "nat-0123456789abcdef0", true);
        let mut rig = Rig::new(ec2, desired()).await;
        assert_eq!(rig.failure().await, format!("the instance's role does not allow ec2:{action}"));
        rig.further_passes(2).await;
        rig.ec2(|ec2| {
            // Routes do without the interfaces, Elastic IPs do not.
            let of_checks = action.contains("NetworkInterface");
            assert_eq!(*ec2.check(ENI), of_checks, "{action}");
            let of_routes = ["DescribeRouteTables", "ReplaceRoute"].contains(&action);
            assert_eq!(ec2.route(TABLE, ANYWHERE) == Some(OTHER_ENI), !of_routes, "{action}");
            ec2.fault = Fault::None;
        });
        rig.until_had().await;
        rig.ec2(assert_had);
    }
}

#[tokio::test]
async fn every_error_code_of_these_calls_is_a_state_and_is_recovered_from() {
    let codes = [
        (ALL, 401, "AuthFailure"),
        (ALL, 400, "RequestExpired"),
        (ALL, 403, "OptInRequired"),
        (ALL, 403, "Blocked"),
        (ALL, 400, "UnsupportedOperation"),
        (ALL, 500, "InternalError"),
        (ALL, 503, "Unavailable"),
        (ALL, 503, "ServiceUnavailable"),
        (ALL, 503, "RequestLimitExceeded"),
        ("DescribeNetworkInterfaces", 400, "InvalidNetworkInterfaceID.NotFound"),
        ("DescribeRouteTables", 400, "InvalidParameterValue"),
        ("DescribeAddresses", 400, "InvalidAddress.NotFound"),
        ("ModifyNetworkInterfaceAttribute", 400, "InvalidNetworkInterfaceID.NotFound"),
        ("CreateRoute", 400, "RouteAlreadyExists"),
        ("CreateRoute", 400, "RouteLimitExceeded"),
        ("CreateRoute", 400, "InvalidRouteTableID.NotFound"),
        ("CreateRoute", 400, "InvalidNetworkInterfaceID.NotFound"),
        ("ReplaceRoute", 400, "InvalidRoute.NotFound"),
        ("ReplaceRoute", 400, "InvalidNetworkInterfaceID.NotFound"),
        ("AssignPrivateIpAddresses", 400, "PrivateIpAddressLimitExceeded"),
        ("AssignPrivateIpAddresses", 400, "InsufficientFreeAddressesInSubnet"),
        ("AssociateAddress", 400, "InvalidAllocationID.NotFound"),
        ("AssociateAddress", 400, "Resource.AlreadyAssociated"),
        ("AssociateAddress", 400, "IncorrectInstanceState"),
        ("AssociateAddress", 400, "Gateway.NotAttached"),
        ("AssociateAddress", 400, "AddressLimitExceeded"),
    ];
    for (action, status, code) in codes {
        let mut ec2 = Ec2::with(Fault::Error(action, status, code));
        ec2.set_route(TABLE, ANYWHERE, "nat-0123456789abcdef0", true);
        let mut rig = Rig::new(ec2, desired()).await;
        let failure = rig.failure().await;
        assert!(failure.contains(code) && failure.contains(&format!("ec2:{action}")), "{code}: {failure}");
        rig.ec2(|ec2| ec2.fault = Fault::None);
        rig.until_had().await;
        rig.ec2(assert_had);
    }
}

#[tokio::test]
async fn an_api_that_is_down_silent_or_talks_rubbish_is_a_state_and_is_recovered_from() {
    for action in ["DescribeNetworkInterfaces", "DescribeRouteTables", "DescribeAddresses", "CreateRoute"] {
        for fault in [Fault::Closed(action), Fault::Silence(action), Fault::Rubbish(action)] {
            let mut rig = Rig::new(Ec2::with(fault), desired()).await;
            let failure = rig.failure().await;
            assert!(failure.starts_with(&format!("ec2:{action} has no answer: ")), "{fault:?}: {failure}");
            rig.ec2(|ec2| ec2.fault = Fault::None);
            rig.until_had().await;
            rig.ec2(assert_had);
        }
    }
}

#[tokio::test]
async fn what_ec2_does_not_show_is_a_problem_until_it_does() {
    for (action, named) in [
        ("DescribeNetworkInterfaces", "EC2 does not show the network interface eni-0123456789abcdef0"),
        ("DescribeRouteTables", "there is no route table rtb-0123456789abcdef0"),
        ("DescribeAddresses", "there is no Elastic IP eipalloc-0123456789abcdef0"),
    ] {
        let mut rig = Rig::new(Ec2::with(Fault::Empty(action)), desired()).await;
        let state = rig.until("a problem", |state| !state.problems.is_empty()).await;
        assert!(state.problems[0].to_string().starts_with(named), "{state:?}");
        rig.ec2(|ec2| ec2.fault = Fault::None);
        rig.until_had().await;
        rig.ec2(assert_had);
    }
}

#[tokio::test]
async fn an_outage_after_all_was_had_is_shown_and_what_drifted_in_it_is_put_back() {
    let mut rig = Rig::new(Ec2::new(), desired()).await;
    rig.until_had().await;
    rig.ec2(|ec2| (ec2.fault, *ec2.check(ENI)) = (Fault::Closed(ALL), true));
    rig.failure().await;
    let state = rig.until("it may be on", |state| matches!(state.checks[ENI], Check::Failed(_))).await;
    assert_eq!((state.routes.len(), state.elastic_ips.len()), (2, 2), "as last seen");
    rig.ec2(|ec2| ec2.fault = Fault::None);
    rig.until_had().await;
    rig.ec2(assert_had);
}

#[tokio::test]
async fn throttling_ends_the_pass_and_the_next_ones_come_later_and_later() {
    let slow = Timing { max_backoff: Duration::from_secs(1), ..TIMING };
    let ec2 = Ec2::with(Fault::Error("DescribeNetworkInterfaces", 503, "RequestLimitExceeded"));
    let begun = Instant::now();
    let mut rig = Rig::timed(ec2, desired(), slow).await;
    let failure = rig.failure().await;
    assert_eq!(failure, "ec2:DescribeNetworkInterfaces is throttled: RequestLimitExceeded");
    rig.further_passes(6).await;
    // 10, 20, 40, ... ms, up to a second, each at least half.
    let made = rig.ec2(|ec2| ec2.calls.len());
    let least: u64 = (1..made).map(|wait| (5_u64 << (wait - 1).min(7)).min(500)).sum();
    assert!(begun.elapsed() >= Duration::from_millis(least), "{made} passes in {:?}", begun.elapsed());
    rig.ec2(|ec2| assert_eq!(ec2.made("DescribeNetworkInterfaces"), ec2.calls.len(), "{:?}", ec2.calls));
}

#[tokio::test]
async fn what_is_desired_may_change_and_a_look_may_be_asked_for() {
    let seldom = Timing { interval: Duration::from_mins(10), ..TIMING };
    let mut rig = Rig::timed(Ec2::new(), desired(), seldom).await;
    rig.until_had().await;
    let passes = |rig: &Rig| rig.ec2(|ec2| ec2.made("DescribeAddresses"));
    // The pass after the writes.
    let settled = rig.until("settled", |state| {
        state.calls.iter().any(|((action, _), count)| *action == "ec2:DescribeAddresses" && *count >= 2)
    });
    settled.await;
    rig.ec2(|ec2| ec2.set_route(TABLE, ANYWHERE, "nat-0123456789abcdef0", true));
    let before = passes(&rig);
    rig.refresh.notify_waiters();
    rig.until("another way", |state| state.calls.iter().any(|((action, _), _)| *action == "ec2:ReplaceRoute"))
        .await;
    assert!(passes(&rig) > before);
    let tables = Tables::Ids(vec![TABLE.to_owned(), OTHER_TABLE.to_owned()]);
    rig.desired.send_modify(|desired| desired.routes.as_mut().unwrap().tables = tables);
    rig.until("four routes", |state| state.routes.len() == 4).await;
    assert_eq!(rig.ec2(|ec2| ec2.route(OTHER_TABLE, ANYWHERE).map(str::to_owned)).as_deref(), Some(OTHER_ENI));
}
