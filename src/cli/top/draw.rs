//! How `egret top` looks: everything within 80 by 24, and more of the lists where there is more room.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use tokio::time::Instant as Clock;

use super::model::{Model, Rates};
use crate::admin::{GatewayReport, Measure, Status, TalkerReport, TargetReport};
use crate::cli::text::{bytes, count, duration, scaled};

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let Some(status) = model.status() else { return };
    let head = head(status, model);
    let traffic = traffic(status, model.rates().as_ref());
    let listeners = listeners(status);
    let (talkers, window) = model.talkers();
    let fixed = height(&head) + height(&traffic) + 1;
    let free = frame.area().height.saturating_sub(fixed);
    // Two lists share what is left; who needs less leaves it to the other.
    let wanted = height(&listeners).min(free);
    let most = talkers.internal.len().max(talkers.remote.len()).max(1) + 2;
    let of_talkers = u16::try_from(most).unwrap_or(u16::MAX).min(free);
    let of_listeners = wanted.min(free.saturating_sub(of_talkers.min(free / 2)));
    let parts = Layout::vertical([
        Constraint::Length(height(&head)),
        Constraint::Length(height(&traffic)),
        Constraint::Min(0),
        Constraint::Length(of_listeners),
        Constraint::Length(1),
    ])
    .split(frame.area());
    let dim = if model.gone(Clock::now()).is_some() { Style::new().dim() } else { Style::new() };
    frame.render_widget(Paragraph::new(head), parts[0]);
    frame.render_widget(Paragraph::new(traffic).style(dim), parts[1]);
    let [internal, remote] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(2).areas::<2>(parts[2]);
    draw_talkers(frame, internal, &format!("hosts, {window}"), &talkers.internal, model.by(), dim);
    draw_talkers(frame, remote, "remote networks", &talkers.remote, model.by(), dim);
    frame.render_widget(Paragraph::new(listeners).style(dim), parts[3]);
    let keys = " q quit   b bytes  p packets  s sessions  o ports   h minute or hour";
    frame.render_widget(Paragraph::new(keys).style(Style::new().reversed()), parts[4]);
}

fn head(status: &Status, model: &Model) -> Vec<Line<'static>> {
    let uptime = duration(f64::from(u32::try_from(status.uptime_seconds).unwrap_or(u32::MAX)));
    let (word, style) = match (model.gone(Clock::now()), status.ready, status.degraded.is_empty()) {
        (Some(_), _, _) => ("NO ANSWER", Style::new().white().on_red().bold()),
        (None, false, _) => ("NOT READY", Style::new().white().on_red().bold()),
        (None, true, false) => ("DEGRADED", Style::new().black().on_yellow().bold()),
        (None, true, true) => ("READY", Style::new().green().bold()),
    };
    let interface = if status.external_interface == status.internal_interface {
        status.external_interface.clone()
    } else {
        format!("{} and {}", status.internal_interface, status.external_interface)
    };
    let first = Line::from(vec![
        Span::raw(format!("egret {}  ", status.version)).bold(),
        Span::styled(format!(" {word} "), style),
        Span::raw(format!("  up {uptime}, {} on {interface}", status.datapath)),
    ]);
    let why: Vec<String> = match model.gone(Clock::now()) {
        Some((why, since)) => vec![format!("for {}: {why}", duration(since.as_secs_f64()))],
        None => status.not_ready.iter().chain(&status.degraded).cloned().collect(),
    };
    let mut lines = vec![first];
    let hidden = why.len().saturating_sub(REASONS);
    lines.extend(why.into_iter().take(REASONS).map(|why| Line::from(format!("  {why}")).yellow()));
    if hidden > 0 {
        lines.push(Line::from(format!("  and {hidden} more: egret status")).yellow());
    }
    for notice in &status.notices {
        lines.push(Line::from(format!("  notice: {}", notice.kind.replace('_', " "))).yellow());
    }
    lines.push(Line::default());
    lines
}

fn traffic(status: &Status, rates: Option<&Rates>) -> Vec<Line<'static>> {
    let rate = |of: fn(&Rates) -> f64, unit: &str| {
        rates.map_or_else(|| "-".to_owned(), |rates| format!("{}{unit}", scaled(of(rates))))
    };
    let total = |name: &str| status.traffic.get(name).map_or_else(String::new, |traffic| bytes(traffic.bytes));
    let row = |name: &str, bits: String, packets: String, total: String| {
        Line::from(format!("{name:<10}{bits:>14}{packets:>16}{total:>14}"))
    };
    let sessions = &status.sessions;
    let processed = &status.processed;
    let mut lines = vec![
        Line::from(format!("{:<10}{:>14}{:>16}{:>14}", "traffic", "bits", "packets", "since start"))
            .style(TITLE),
        row("out", rate(|r| r.bits_out, "bit/s"), rate(|r| r.packets_out, "/s"), total("out_to_external")),
        row("in", rate(|r| r.bits_in, "bit/s"), rate(|r| r.packets_in, "/s"), total("in_from_external")),
        Line::from(format!(
            "{:<10}{} of {}, {} opened, {} closed, {} private hosts",
            "sessions",
            count(sessions.live.into()),
            count(sessions.limit.into()),
            rate(|r| r.opened, "/s"),
            rate(|r| r.closed, "/s"),
            count(sessions.internal_addresses.into())
        )),
        ports(status),
    ];
    if let Some(ratio) = status.fast_path.as_ref().and_then(|fast_path| fast_path.hit_ratio) {
        lines.push(Line::from(format!("{:<10}{:.1} % of packets", "fast path", ratio * 100.0)));
    }
    let drops = rates.map(|rates| &rates.drops[..]).unwrap_or_default();
    let shown: Vec<String> =
        drops.iter().take(DROPS).map(|(reason, rate)| format!("{reason} {}/s", scaled(*rate))).collect();
    let dropped = if shown.is_empty() { "none now".to_owned() } else { shown.join(", ") };
    lines.push(Line::from(format!("{:<10}{dropped}", "drops")));
    lines.push(Line::from(format!(
        "{:<10}{}, for which a NAT gateway takes ${:.2}",
        "processed",
        bytes(processed.bytes),
        processed.nat_gateway_price
    )));
    lines.push(Line::default());
    lines
}

/// How full the fullest external address is.
fn ports(status: &Status) -> Line<'static> {
    let loads = status
        .ports
        .iter()
        .flat_map(|of| [("tcp", of.tcp), ("udp", of.udp)].map(|(protocol, load)| (of.address, protocol, load)));
    let share = |used: u32, limit: u32| f64::from(used) / f64::from(limit.max(1));
    let fullest =
        loads.max_by(|(_, _, a), (_, _, b)| share(a.used, a.limit).total_cmp(&share(b.used, b.limit)));
    let Some((address, protocol, load)) = fullest else { return Line::default() };
    let share = share(load.used, load.limit);
    let text = format!(
        "{:<10}{} of {} of {address} ({protocol}), {:.0} %",
        "ports",
        count(load.used.into()),
        count(load.limit.into()),
        share * 100.0
    );
    if share >= PORTS_SHORT { Line::from(text).yellow() } else { Line::from(text) }
}

fn draw_talkers(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    talkers: &[TalkerReport],
    by: Measure,
    style: Style,
) {
    let (name, other) = match by {
        Measure::Bytes => ("bytes", "sessions"),
        Measure::Packets => ("packets", "bytes"),
        Measure::Sessions => ("sessions", "bytes"),
        Measure::Ports => ("ports", "sessions"),
    };
    let value = |talker: &TalkerReport, name: &str| match name {
        "bytes" => bytes(talker.bytes),
        "packets" => count(talker.packets),
        "sessions" => count(talker.sessions),
        _ => count(talker.ports),
    };
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let rows = talkers.iter().map(|talker| {
        Row::new([Cell::from(talker.who.clone()), right(value(talker, name)), right(value(talker, other))])
    });
    let head = Row::new([Cell::from(title.to_owned()), right(name.to_owned()), right(other.to_owned())]);
    let widths = [Constraint::Fill(1), Constraint::Length(10), Constraint::Length(8)];
    let table = Table::new(rows, widths).header(head.style(TITLE)).column_spacing(1).style(style);
    frame.render_widget(table, area);
}

/// What there is beside NAT: gateways, and listeners with their targets.
fn listeners(status: &Status) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(fleet) = &status.fleet {
        lines.push(Line::from(format!("gateways, {} is {}", fleet.name, fleet.health)).style(TITLE));
        lines.extend(fleet.gateways.iter().map(gateway));
    }
    for listener in &status.listeners {
        let title = format!("{} on {}, {} connections", listener.name, listener.listen, listener.connections);
        lines.push(Line::from(title).style(TITLE));
        // Those that somebody has to look at come first.
        let mut targets: Vec<&TargetReport> = listener.targets.iter().collect();
        targets.sort_by_key(|target| target.state == "healthy");
        lines.extend(targets.into_iter().map(target));
    }
    lines
}

fn gateway(gateway: &GatewayReport) -> Line<'static> {
    let GatewayReport { gateway, host, role, since_seconds, trouble, .. } = gateway;
    let color = match role.as_str() {
        "active" => Color::Green,
        "standby" => Color::Reset,
        _ => Color::Yellow,
    };
    let host = host.as_deref().unwrap_or("nobody");
    let since = since_seconds.map(duration).unwrap_or_default();
    Line::from(vec![
        Span::raw(format!("  {gateway:<22}")),
        Span::styled(format!("{role:<10}"), Style::new().fg(color)),
        Span::raw(format!("host {host} {since:>6}  {}", trouble.as_deref().unwrap_or_default())),
    ])
}

fn target(target: &TargetReport) -> Line<'static> {
    let color = match target.state.as_str() {
        "healthy" => Color::Green,
        "unhealthy" => Color::Red,
        _ => Color::Yellow,
    };
    let why = target.why.as_deref().unwrap_or_default();
    let why = why.strip_prefix("health check: ").unwrap_or(why).to_owned();
    Line::from(vec![
        Span::raw(format!("  {:<22}", target.address.to_string())),
        Span::styled(format!("{:<10}", target.state), Style::new().fg(color)),
        Span::raw(format!(
            "{:>7} open  {:>6}  {why}",
            count(target.connections.into()),
            duration(target.since_seconds)
        )),
    ])
}

fn height(lines: &[Line<'_>]) -> u16 {
    u16::try_from(lines.len()).unwrap_or(u16::MAX)
}

const TITLE: Style = Style::new().add_modifier(Modifier::UNDERLINED);
/// Why it is not well: the rest is in `egret status`.
const REASONS: usize = 2;
const DROPS: usize = 3;
/// From this share of its ports on, an address is short of them.
const PORTS_SHORT: f64 = 0.8;

#[cfg(test)]
mod tests;
