//! Finds DPDK with pkg-config, writes the bindings with bindgen and compiles the shim for what DPDK has only as macros or inlines.

use std::path::PathBuf;
use std::process::Command;

/// Everything `ffi/dpdk` calls, and nothing else: DPDK's headers declare thousands of names.
const FUNCTIONS: &[&str] = &[
    "rte_eal_(init|hotplug_add|has_hugepages|get_runtime_dir)",
    "rte_(strerror|version|openlog_stream|log_set_global_level)",
    "rte_(thread_register|thread_unregister|dev_remove|dev_name|dev_bus|bus_name)",
    "rte_mempool_(create_empty|set_ops_byname|populate_default|obj_iter|free|avail_count|in_use_count|lookup)",
    "rte_pktmbuf_(pool_init|init|free_bulk)",
    "rte_ring_(create|free)",
    "rte_eth_(from_rings|dev_count_avail|dev_is_valid_port|dev_get_port_by_name|dev_get_name_by_port|dev_info_get)",
    "rte_eth_(dev_configure|dev_adjust_nb_rx_tx_desc|rx_queue_setup|tx_queue_setup|dev_start|dev_stop|dev_close|dev_socket_id)",
    "rte_eth_(macaddr_get|link_get_nowait|stats_get|stats_reset|promiscuous_enable|promiscuous_disable|promiscuous_get)",
    "rte_eth_(allmulticast_enable|dev_get_mtu|dev_set_mtu|dev_default_mac_addr_set|dev_flow_ctrl_get|dev_flow_ctrl_set)",
    "rte_eth_dev_rss_(hash_update|hash_conf_get|reta_update|reta_query)",
    "shim_.*",
];
const TYPES: &[&str] = &[
    "rte_mbuf",
    "rte_mempool",
    "rte_pktmbuf_pool_private",
    "rte_eth_(conf|dev_info|stats|link|fc_conf|rss_conf|rss_reta_entry64)",
];
const VALUES: &[&str] = &[
    "RTE_MAX_(ETHPORTS|LCORE)",
    "RTE_PKTMBUF_HEADROOM",
    "RTE_MBUF_F_RX_.*",
    "RTE_MEMPOOL_.*",
    "RTE_ETH_LINK_(UP|DOWN)",
    "RTE_ETH_RX_DESC_DONE",
    "RING_F_.*",
];
/// Only these are linked: the drivers are loaded by EAL when it starts.
const LIBRARIES: &[&str] = &["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_net_ring", "rte_eal"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/shim.h");
    println!("cargo::rerun-if-changed=src/shim.c");

    let dpdk = pkg_config::Config::new().atleast_version("22.11").cargo_metadata(false).probe("libdpdk");
    let dpdk = dpdk
        .unwrap_or_else(|error| panic!("DPDK (libdpdk 22.11 or later) is not installed: run scripts/setup\n{error}"));
    // bindgen and cc see include paths through the crate, but DPDK's inlines also need its forced include and -march.
    let mut flags = command_line("--cflags-only-other");
    flags.extend(dpdk.include_paths.iter().map(|path| format!("-I{}", path.display())));

    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    let mut shim = cc::Build::new();
    for flag in &flags {
        shim.flag(flag);
    }
    // DPDK's own headers are not warning-free under every compiler.
    shim.file("src/shim.c").warnings(false).opt_level(3).compile("weir_dpdk_shim");
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    println!("cargo::metadata=version={}", dpdk.version);

    let mut bindings = bindgen::Builder::default()
        .header("src/shim.h")
        .clang_args(&flags)
        // Packed and aligned at once, which Rust has no layout for; nobody here looks inside.
        .opaque_type("rte_arp_ipv4|rte_arp_hdr|rte_gtp_psc_generic_hdr|rte_l2tpv2_combined_msg_hdr")
        .opaque_type("rte_device|rte_bus|rte_intr_handle|rte_eth_dev_.*_ctx|_IO_FILE")
        .generate_comments(false)
        .derive_debug(false)
        .derive_default(true)
        .layout_tests(true)
        .merge_extern_blocks(true);
    for function in FUNCTIONS {
        bindings = bindings.allowlist_function(function);
    }
    for name in TYPES {
        bindings = bindings.allowlist_type(name);
    }
    for value in VALUES {
        bindings = bindings.allowlist_var(value);
    }
    let bindings = bindings.generate().expect("bindgen cannot read DPDK's headers: run scripts/setup");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindings.write_to_file(out).expect("OUT_DIR is writable");
}

/// What `pkg-config OPTION libdpdk` prints, by words.
fn command_line(option: &str) -> Vec<String> {
    let output = Command::new("pkg-config")
        .args([option, "libdpdk"])
        .output()
        .expect("pkg-config is missing: run scripts/setup");
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
}
