//! Compiles the BPF programs with clang, which any distribution has: no BPF toolchain of Rust's own is needed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CLANG");
    // With the headers that the programs share.
    println!("cargo::rerun-if-changed=src/datapath/bpf");
    println!("cargo::rerun-if-changed=tests/lab/bpf");
    for source in SOURCES {
        if let Err(reason) = compile(Path::new(source)) {
            // One line each, or cargo shows only the first.
            for line in reason.lines() {
                println!("cargo::error={line}");
            }
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn compile(source: &Path) -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let name = source.file_name().ok_or("a source without a name")?;
    let output = PathBuf::from(variable("OUT_DIR")?).join(name).with_extension("o");
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let endian = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb",
        _ => "bpfel",
    };
    let clang = clang()?;
    let result = Command::new(&clang)
        .args(["-target", endian, "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-c"])
        // Newer versions of clang take v3 for granted, and compare 32-bit copies that the verifier does not follow.
        .arg("-mcpu=v2")
        // Debian keeps <asm/types.h> in the directory of the architecture; elsewhere there is none, and no harm.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        // The object is part of the program, which is to be the same wherever it is built.
        .arg(format!("-ffile-prefix-map={}=.", variable("CARGO_MANIFEST_DIR")?))
        .arg(source)
        .arg("-o")
        .arg(&output)
        .output()
        .map_err(|error| format!("cannot run {clang}: {error}"))?;
    if result.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&result.stderr);
    let hint = if complaint.contains("file not found") {
        "\nthe kernel's headers are missing: apt-get install linux-libc-dev"
    } else {
        ""
    };
    Err(format!("{clang} cannot compile {}:\n{complaint}{hint}", source.display()))
}

/// `$CLANG`, or the first clang there is that knows the BPF target.
fn clang() -> Result<String, String> {
    let named = std::env::var("CLANG").ok().into_iter();
    let usual =
        std::iter::once("clang".to_owned()).chain((14..=21).rev().map(|version| format!("clang-{version}")));
    named
        .chain(usual)
        .find(|clang| {
            Command::new(clang)
                .arg("-print-targets")
                .output()
                .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("bpfel"))
        })
        .ok_or_else(|| "no clang that can compile for BPF: apt-get install clang linux-libc-dev".to_owned())
}

const SOURCES: &[&str] =
    &["src/datapath/bpf/filter.bpf.c", "src/datapath/bpf/xdp.bpf.c", "tests/lab/bpf/lab.bpf.c"];
