/* What bindgen reads: DPDK's headers, and functions for what they offer only as inlines, macros or thread-local variables. */
#include <stdbool.h>
#include <stdio.h>
#include <rte_config.h>
#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);
int shim_rx_descriptor_status(uint16_t port, uint16_t queue, uint16_t offset);
uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count);

struct rte_mbuf *shim_alloc(struct rte_mempool *pool);
int shim_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, unsigned int count);
void shim_free(struct rte_mbuf *packet);

/* Takes every packet out of `ring` and frees it. Nobody else may dequeue meanwhile. */
void shim_ring_drain(struct rte_ring *ring);

int shim_errno(void);
/* The calling thread's lcore id, or UINT32_MAX if EAL does not know the thread. */
unsigned int shim_lcore_id(void);

/* Hashes TCP (or UDP) of IPv4 (or IPv6) by `types`; with `queue_count` 0 by the port's own key and table. 0, or a negative error. */
int shim_flow_rss(uint16_t port, bool ipv6, bool udp, uint64_t types, const uint8_t *key, uint32_t key_length,
		  const uint16_t *queues, uint32_t queue_count);
void shim_flow_flush(uint16_t port);

/* The value of a macro that bindgen cannot evaluate, for tests of the constants in Rust. False: not one of those. */
bool shim_value(const char *name, uint64_t *value);

/* From here on DPDK's log goes to `write` (bytes that need not end in NUL); the stream lives as long as the process. -1: no memory. */
int shim_log_to(ssize_t (*write)(void *, const char *, size_t));
