/* See shim.h. */
#define _GNU_SOURCE
#include "shim.h"
#include <string.h>
#include <rte_flow.h>

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, packets, count);
}

int shim_rx_descriptor_status(uint16_t port, uint16_t queue, uint16_t offset)
{
	return rte_eth_rx_descriptor_status(port, queue, offset);
}

uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, packets, count);
}

struct rte_mbuf *shim_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int shim_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, packets, count);
}

void shim_free(struct rte_mbuf *packet)
{
	rte_pktmbuf_free(packet);
}

void shim_ring_drain(struct rte_ring *ring)
{
	void *packet;

	while (rte_ring_dequeue(ring, &packet) == 0)
		rte_pktmbuf_free(packet);
}

int shim_errno(void)
{
	return rte_errno;
}

unsigned int shim_lcore_id(void)
{
	return rte_lcore_id();
}

int shim_flow_rss(uint16_t port, bool ipv6, bool udp, uint64_t types, const uint8_t *key, uint32_t key_length,
		  const uint16_t *queues, uint32_t queue_count)
{
	const struct rte_flow_attr attributes = { .ingress = 1 };
	const struct rte_flow_item pattern[] = {
		{ .type = RTE_FLOW_ITEM_TYPE_ETH },
		{ .type = ipv6 ? RTE_FLOW_ITEM_TYPE_IPV6 : RTE_FLOW_ITEM_TYPE_IPV4 },
		{ .type = udp ? RTE_FLOW_ITEM_TYPE_UDP : RTE_FLOW_ITEM_TYPE_TCP },
		{ .type = RTE_FLOW_ITEM_TYPE_END },
	};
	const struct rte_flow_action_rss rss = {
		.func = RTE_ETH_HASH_FUNCTION_TOEPLITZ,
		.types = types,
		.key = key,
		.key_len = key_length,
		.queue = queues,
		.queue_num = queue_count,
	};
	const struct rte_flow_action actions[] = {
		{ .type = RTE_FLOW_ACTION_TYPE_RSS, .conf = &rss },
		{ .type = RTE_FLOW_ACTION_TYPE_END },
	};
	struct rte_flow_error error;
	int refused = rte_flow_validate(port, &attributes, pattern, actions, &error);

	if (refused != 0)
		return refused;
	return rte_flow_create(port, &attributes, pattern, actions, &error) == NULL ? -rte_errno : 0;
}

void shim_flow_flush(uint16_t port)
{
	struct rte_flow_error error;

	rte_flow_flush(port, &error);
}

#define VALUE(macro) \
	if (strcmp(name, #macro) == 0) { \
		*value = macro; \
		return true; \
	}

bool shim_value(const char *name, uint64_t *value)
{
	VALUE(RTE_ETH_RSS_NONFRAG_IPV4_TCP)
	VALUE(RTE_ETH_RSS_NONFRAG_IPV4_UDP)
	VALUE(RTE_ETH_RSS_NONFRAG_IPV6_TCP)
	VALUE(RTE_ETH_RSS_NONFRAG_IPV6_UDP)
	VALUE(RTE_ETH_RSS_IP)
	VALUE(RTE_ETH_RSS_TCP)
	VALUE(RTE_ETH_RSS_UDP)
	VALUE(RTE_ETH_RSS_L3_SRC_ONLY)
	VALUE(RTE_ETH_RSS_L3_DST_ONLY)
	VALUE(RTE_ETH_RSS_L4_SRC_ONLY)
	VALUE(RTE_ETH_RSS_L4_DST_ONLY)
	VALUE(RTE_ETH_LINK_SPEED_10M)
	VALUE(RTE_ETH_LINK_SPEED_100M)
	VALUE(RTE_ETH_LINK_SPEED_1G)
	VALUE(RTE_ETH_LINK_SPEED_2_5G)
	VALUE(RTE_ETH_LINK_SPEED_5G)
	VALUE(RTE_ETH_LINK_SPEED_10G)
	VALUE(RTE_ETH_LINK_SPEED_20G)
	VALUE(RTE_ETH_LINK_SPEED_25G)
	VALUE(RTE_ETH_LINK_SPEED_40G)
	VALUE(RTE_ETH_LINK_SPEED_50G)
	VALUE(RTE_ETH_LINK_SPEED_56G)
	VALUE(RTE_ETH_LINK_SPEED_100G)
	VALUE(RTE_ETH_LINK_SPEED_200G)
	VALUE(RTE_ETH_DEV_NOLIVE_MAC_ADDR)
	return false;
}

int shim_log_to(ssize_t (*write)(void *, const char *, size_t))
{
	cookie_io_functions_t functions = { .write = write };
	FILE *stream = fopencookie(NULL, "w", functions);

	if (stream == NULL)
		return -1;
	setvbuf(stream, NULL, _IOLBF, BUFSIZ);
	return rte_openlog_stream(stream);
}
