//! `egret top`: the daemon at a glance, once a second, in a terminal.

mod draw;
mod model;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::time::Instant as Clock;

use crate::admin::client::{Client, Error};
use crate::admin::{Measure, Status, TalkersReport};
use crate::config::DEFAULT_SOCKET;
use model::Model;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The daemon's control socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if !std::io::stdout().is_terminal() {
        bail!("standard output is no terminal; use `egret status`");
    }
    let mut model = Model::default();
    // A daemon that is not there is told as by other commands; one that goes away later is shown as gone.
    model.take_in(Clock::now(), Ok(ask(&arguments.socket, model.by())?));
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let result = run(&mut terminal, &mut model, &arguments.socket);
    ratatui::restore();
    result.context("the terminal cannot be used")?;
    Ok(ExitCode::SUCCESS)
}

fn run(terminal: &mut ratatui::DefaultTerminal, model: &mut Model, socket: &Path) -> std::io::Result<()> {
    let mut next = Clock::now() + EVERY;
    loop {
        terminal.draw(|frame| draw::draw(frame, model))?;
        if event::poll(next.saturating_duration_since(Clock::now()))? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release && is_the_end(key) => return Ok(()),
                Event::Key(key) if key.kind != KeyEventKind::Release && model.press(key.code) => {
                    next = Clock::now();
                }
                _ => {}
            }
        }
        if next <= Clock::now() {
            next = Clock::now() + EVERY;
            model.take_in(Clock::now(), ask(socket, model.by()));
        }
    }
}

fn ask(socket: &Path, by: Measure) -> Result<(Status, TalkersReport), Error> {
    let mut client = Client::connect(socket)?;
    Ok((client.status()?, client.talkers(by, TALKERS)?))
}

fn is_the_end(key: KeyEvent) -> bool {
    matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        || key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL)
}

const EVERY: Duration = Duration::from_secs(1);
/// Of each kind: more do not fit a large terminal.
const TALKERS: usize = 40;
