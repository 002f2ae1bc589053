//! Every metric that there is: its name, type, unit, labels and meaning, and what of AWS it stands for.

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
    /// Values of labels are from fixed sets, or names and places of the configuration; never a client's address or
    /// port.
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
    /// What it stands for in `CloudWatch`, of a NAT gateway or a network load balancer; empty if there is no such thing.
    pub cloudwatch: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $name:literal, $kind:ident, $unit:literal, $labels:expr, $meaning:literal, $cloudwatch:literal;)*) => {
        $(pub(super) const $id: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            labels: &$labels,
            meaning: $meaning,
            cloudwatch: $cloudwatch,
        };)*

        /// All of them, in the order in which they are shown.
        pub const ALL: &[Metric] = &[$($id,)*];
    };
}

metrics! {
    BUILD_INFO = "egret_build_info", Gauge, "", ["version", "datapath"],
        "Always 1; the version that runs, and by which datapath", "";
    UPTIME = "egret_daemon_uptime_seconds", Gauge, "seconds", [],
        "Since packets have flowed", "";
    READY = "egret_daemon_ready", Gauge, "boolean", [],
        "Whether packets would flow: what /readyz says", "";
    DEGRADED = "egret_daemon_degraded_reasons", Gauge, "reasons", [],
        "How much is wrong although packets flow; /readyz and egret status name each", "";
    DRAINING = "egret_daemon_draining", Gauge, "boolean", [],
        "Whether listeners take no more connections, since the instance is about to end", "";

    NAT_BYTES = "egret_nat_bytes_total", Counter, "bytes", ["direction"],
        "Of IPv4, by direction as a NAT gateway has them; hairpinned: from one internal host to another by an external address",
        "NAT gateway BytesInFromSource, BytesOutToDestination, BytesInFromDestination, BytesOutToSource; rate(): PeakBytesPerSecond";
    NAT_PACKETS = "egret_nat_packets_total", Counter, "packets", ["direction"],
        "As egret_nat_bytes_total; a super-frame counts as one",
        "NAT gateway PacketsInFromSource, PacketsOutToDestination, PacketsInFromDestination, PacketsOutToSource; rate(): PeakPacketsPerSecond";
    NAT_DROPPED = "egret_nat_dropped_packets_total", Counter, "packets", ["reason"],
        "Packets that the NAT dropped, by reason", "NAT gateway PacketsDropCount";
    NAT_SESSIONS = "egret_nat_sessions", Gauge, "sessions", ["protocol", "state"],
        "Live sessions", "NAT gateway ActiveConnectionCount";
    NAT_SESSION_LIMIT = "egret_nat_sessions_limit", Gauge, "sessions", [],
        "How many there may be", "";
    NAT_OPENED = "egret_nat_sessions_opened_total", Counter, "sessions", [],
        "Sessions begun", "NAT gateway ConnectionAttemptCount";
    NAT_ESTABLISHED = "egret_nat_sessions_established_total", Counter, "sessions", [],
        "Sessions that were answered; of TCP, those whose handshake was completed",
        "NAT gateway ConnectionEstablishedCount";
    NAT_CLOSED = "egret_nat_sessions_closed_total", Counter, "sessions", ["reason"],
        "Sessions ended, by reason", "NAT gateway IdleTimeoutCount is reason=\"expired\"";
    NAT_MAPPINGS = "egret_nat_mappings", Gauge, "mappings", [],
        "Internal endpoints with an external endpoint", "";
    NAT_HOSTS = "egret_nat_internal_addresses", Gauge, "addresses", [],
        "Internal addresses with a session", "";
    NAT_PORTS = "egret_nat_ports_used", Gauge, "ports", ["address", "protocol"],
        "Ports (of ICMP, identifiers) taken; address is the external address's place in the configuration, from 0", "";
    NAT_PORT_LIMIT = "egret_nat_ports_limit", Gauge, "ports", ["address", "protocol"],
        "Ports that there are to take", "";
    NAT_PORT_FAILURES = "egret_nat_port_allocation_failures_total", Counter, "mappings", ["address"],
        "Mappings that found no port left", "NAT gateway ErrorPortAllocation; load balancer PortAllocationErrorCount";
    NAT_OVERLOADED = "egret_nat_ports_overloaded_total", Counter, "mappings", [],
        "Mappings that had to share a port with another", "";
    NAT_ICMP_ERRORS = "egret_nat_icmp_errors_total", Counter, "packets", [],
        "ICMP errors translated", "";
    NAT_FRAGMENTS = "egret_nat_fragments_total", Counter, "packets", [],
        "Fragments received", "";
    NAT_FRAGMENTED = "egret_nat_fragmented_packets_total", Counter, "packets", [],
        "Packets cut to fit the MTU", "";
    NAT_FRAGMENT_MEMORY = "egret_nat_fragment_memory_bytes", Gauge, "bytes", [],
        "Fragments that wait for their first", "";
    NAT_REPLIES = "egret_nat_replies_total", Counter, "packets", [],
        "RST and ICMP errors sent to hosts whose packet was dropped", "";
    NAT_REPLIES_LIMITED = "egret_nat_replies_limited_total", Counter, "packets", [],
        "Such answers not sent, by the rate limit", "";
    NAT_EVENTS_LOST = "egret_nat_events_lost_total", Counter, "events", [],
        "Events of sessions that came faster than they were taken: the session log and the talkers lack them", "";

    FAST_BYTES = "egret_fast_path_bytes_total", Counter, "bytes", ["direction"],
        "Of IPv4, what the BPF program translated by itself; egret_nat_bytes_total has it too", "";
    FAST_PACKETS = "egret_fast_path_packets_total", Counter, "packets", ["direction"],
        "As egret_fast_path_bytes_total", "";
    FAST_MISSES = "egret_fast_path_misses_total", Counter, "packets", ["reason"],
        "Packets that it left to the engine, by reason", "";
    FAST_SESSIONS = "egret_fast_path_sessions", Gauge, "sessions", [],
        "Sessions that it carries", "";
    FAST_FLOWS = "egret_fast_path_flows", Gauge, "flows", [],
        "Entries in its table: two for a session", "";
    FAST_FLOW_LIMIT = "egret_fast_path_flows_limit", Gauge, "flows", [],
        "How many there may be", "";
    FAST_REFUSED = "egret_fast_path_refused_total", Counter, "sessions", [],
        "Sessions that it did not take, for want of room or of a route", "";
    FAST_PASSED = "egret_fast_path_passed_packets_total", Counter, "packets", [],
        "Packets of the host itself", "";
    FAST_UNSERVED = "egret_fast_path_unserved_packets_total", Counter, "packets", [],
        "Packets lost because they came by a receive queue that nobody reads", "";

    FRAMES_RECEIVED = "egret_datapath_received_frames_total", Counter, "frames", [],
        "Frames that came to the engine; a super-frame counts as one", "";
    FRAMES_SENT = "egret_datapath_sent_frames_total", Counter, "frames", [],
        "Frames that the engine had sent", "";
    FRAMES_DROPPED = "egret_datapath_dropped_frames_total", Counter, "frames", ["reason"],
        "Frames lost beside the NAT: receive_full (the socket's or AF_XDP ring's room), receive_malformed, send_failed, unresolved (no answer from the next hop), unreachable (no route)",
        "";
    NETLINK_OVERFLOWS = "egret_datapath_netlink_overflows_total", Counter, "times", [],
        "How often the kernel's events came too fast, and routes and neighbours were read anew", "";

    CONNECTIONS = "egret_forward_connections", Gauge, "connections", ["listener"],
        "Open connections", "load balancer ActiveFlowCount";
    CONNECTIONS_OPENED = "egret_forward_connections_opened_total", Counter, "connections", ["listener"],
        "Connections taken in", "load balancer NewFlowCount";
    CONNECTIONS_REFUSED = "egret_forward_connections_refused_total", Counter, "connections", ["listener", "reason"],
        "Connections not taken in, by reason", "load balancer RejectedFlowCount";
    CONNECTIONS_ENDED = "egret_forward_connections_ended_total", Counter, "connections", ["listener", "reason"],
        "How connections ended; cut is a reset by Egret",
        "load balancer TCP_Client_Reset_Count, TCP_Target_Reset_Count, TCP_ELB_Reset_Count, ClientTLSNegotiationErrorCount";
    FORWARD_BYTES = "egret_forward_bytes_total", Counter, "bytes", ["listener", "direction"],
        "Data, to_target and to_client; in mode nat of connections that have ended", "load balancer ProcessedBytes";
    ACCEPT_PAUSES = "egret_forward_accept_pauses_total", Counter, "times", ["listener"],
        "How often accepting had to wait, since the host was short of descriptors or memory", "";
    FAIL_OPEN = "egret_forward_fail_open", Gauge, "boolean", ["listener"],
        "Whether all targets are unhealthy, so that all get connections", "load balancer UnhealthyRoutingFlowCount";
    TARGETS = "egret_forward_targets", Gauge, "targets", ["listener", "state"],
        "Targets by state", "load balancer HealthyHostCount, UnHealthyHostCount";
    TARGET_HEALTHY = "egret_forward_target_healthy", Gauge, "boolean", ["listener", "target"],
        "Whether it passes its checks; target is its place among the listener's, by address, from 0", "";
    TARGET_CONNECTIONS = "egret_forward_target_connections", Gauge, "connections", ["listener", "target"],
        "Open connections", "";
    TARGET_OPENED = "egret_forward_target_connections_opened_total", Counter, "connections", ["listener", "target"],
        "Connections that it was given", "";
    TARGET_CONNECTS_FAILED = "egret_forward_target_connects_failed_total", Counter, "connections", ["listener", "target"],
        "Connections that it did not take", "";
    TARGET_UNANSWERED = "egret_forward_target_unanswered_total", Counter, "connections", ["listener", "target"],
        "Of mode = \"nat\": connections that it never answered", "";
    TARGET_CHECKS = "egret_forward_target_checks_total", Counter, "checks", ["listener", "target"],
        "Health checks", "";
    TARGET_CHECKS_FAILED = "egret_forward_target_checks_failed_total", Counter, "checks", ["listener", "target"],
        "Health checks that it failed", "";
    CHECK_DURATION = "egret_forward_check_duration_seconds", Histogram, "seconds", ["listener"],
        "Of health checks that passed", "";
    CONNECT_DURATION = "egret_forward_connect_duration_seconds", Histogram, "seconds", ["listener"],
        "Of connections to targets that came about; of mode = \"proxy\"", "";
    CERTIFICATE_EXPIRY = "egret_forward_certificate_expiry_timestamp_seconds", Gauge, "seconds since 1970", ["listener"],
        "When the listener's certificate ends", "";

    LOG_LINES = "egret_session_log_lines_total", Counter, "lines", [],
        "Lines of the session log written", "";
    LOG_LOST = "egret_session_log_lost_lines_total", Counter, "lines", ["reason"],
        "Lines lost: queue (the writer could not keep up), rate (beyond lines_per_second), write (the file could not be written)", "";

    AWS_CALLS = "egret_aws_calls_total", Counter, "calls", ["action", "outcome"],
        "Calls of the API", "";
    AWS_FAILING = "egret_aws_failing_seconds", Gauge, "seconds", [],
        "How long each look at AWS has had a failure; 0 if the last one had none", "";
    AWS_PROBLEMS = "egret_aws_problems", Gauge, "problems", [],
        "What somebody has to mend; egret status names each", "";
    AWS_CHECK_OFF = "egret_aws_source_dest_check_off", Gauge, "boolean", [],
        "Whether the source/destination checks are off, as they have to be", "";
    AWS_ROUTES = "egret_aws_routes", Gauge, "routes", ["state"],
        "Routes that are to lead here; only active ones do", "";
    AWS_ELASTIC_IPS = "egret_aws_elastic_ips", Gauge, "addresses", [],
        "Elastic IPs of the pool that this instance has", "";

    FLEET_ACTIVE = "egret_failover_gateway_active", Gauge, "boolean", ["gateway"],
        "Whether this instance hosts the gateway, and has seen its addresses and routes here", "";
    FLEET_HOSTED = "egret_failover_gateway_hosted", Gauge, "boolean", ["gateway"],
        "Whether an instance of the fleet is known to host the gateway, this one or another", "";
    FLEET_TAKEOVERS = "egret_failover_takeovers_total", Counter, "take-overs", ["why"],
        "Gateways that came to this instance: free (nobody had it), silence or unwell (of its host), hand_over", "";
    FLEET_LAST = "egret_failover_last_takeover_seconds", Gauge, "seconds", [],
        "What the last of these took, from the decision until it was seen at EC2", "";
    FLEET_PEER_ALIVE = "egret_failover_peer_alive", Gauge, "boolean", ["peer"],
        "Whether the peer is heard", "";
    FLEET_PEER_LAG = "egret_failover_peer_round_trip_seconds", Gauge, "seconds", ["peer"],
        "How long the last heartbeat took there and back", "";

    ENA_EXCEEDED = "egret_ena_allowance_exceeded_total", Counter, "packets", ["interface", "allowance"],
        "Packets that the instance type's allowance held back or lost; interface is external or internal",
        "EC2 metrics of the ENA driver (ethtool -S)";
    ENA_AVAILABLE = "egret_ena_conntrack_allowance_available", Gauge, "connections", ["interface"],
        "Connections that EC2 can still track before it drops packets",
        "EC2 metrics of the ENA driver (ethtool -S)";

    PROCESS_CPU = "process_cpu_seconds_total", Counter, "seconds", [],
        "Total user and system CPU time spent in seconds.", "";
    PROCESS_MAX_FDS = "process_max_fds", Gauge, "descriptors", [],
        "Maximum number of open file descriptors.", "";
    PROCESS_OPEN_FDS = "process_open_fds", Gauge, "descriptors", [],
        "Number of open file descriptors.", "";
    PROCESS_RSS = "process_resident_memory_bytes", Gauge, "bytes", [],
        "Resident memory size in bytes.", "";
    PROCESS_START = "process_start_time_seconds", Gauge, "seconds since 1970", [],
        "Start time of the process since unix epoch in seconds.", "";
    PROCESS_THREADS = "process_threads", Gauge, "threads", [],
        "Number of OS threads in the process.", "";
    PROCESS_VSIZE = "process_virtual_memory_bytes", Gauge, "bytes", [],
        "Virtual memory size in bytes.", "";
}
