/* What a table on this machine can reach: random cache lines read with prefetch, and DPDK's own hash looked up in bulk.
 *
 *   yardsticks lines ENTRIES MILLIS                    one line of 64 bytes an entry, 16 reads ahead
 *   yardsticks hash ENTRIES MILLIS -- EAL_OPTIONS...   rte_hash, keys of 13 bytes (an IPv4 flow), 32 at once
 *
 * Each prints millions of look-ups per second of the thread's own CPU time. scripts/bench builds and runs it.
 */
#define _GNU_SOURCE
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_prefetch.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { AHEAD = 16, BULK = 32, ROUND = 1 << 16 };

struct flow {
	uint32_t source, destination;
	uint16_t source_port, destination_port;
	uint8_t protocol;
} __attribute__((packed));

static double cpu_seconds(void)
{
	struct timespec time;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static __attribute__((noreturn)) void fail(const char *what)
{
	fprintf(stderr, "yardsticks: %s\n", what);
	exit(1);
}

/* Lines in random order; what is read decides nothing, so that reads overlap as far as the machine can. */
static uint64_t read_lines(const uint64_t *table, uint64_t mask, uint64_t *state)
{
	uint64_t ahead[AHEAD], sum = 0;
	for (int i = 0; i < AHEAD; i++) {
		ahead[i] = (next(state) & mask) * 8;
		__builtin_prefetch(&table[ahead[i]]);
	}
	for (int i = 0; i < ROUND; i++) {
		uint64_t *slot = &ahead[i % AHEAD];
		sum += table[*slot];
		*slot = (next(state) & mask) * 8;
		__builtin_prefetch(&table[*slot]);
	}
	return sum;
}

static double lines(uint64_t entries, double seconds)
{
	size_t bytes = entries * 64;
	size_t mapped = bytes + (2 << 20);
	char *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("no memory for the lines");
	uint64_t *table = (uint64_t *)(((uintptr_t)memory + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
	madvise(table, bytes, MADV_HUGEPAGE);
	memset(table, 1, bytes);
	uint64_t state = 88172645463325252u, reads = 0;
	volatile uint64_t sink = read_lines(table, entries - 1, &state);
	double begun = cpu_seconds(), spent;
	do {
		sink += read_lines(table, entries - 1, &state);
		reads += ROUND;
		spent = cpu_seconds() - begun;
	} while (spent < seconds);
	munmap(memory, mapped);
	return (double)reads / spent / 1e6;
}

static struct flow flow_of(uint64_t number)
{
	return (struct flow){ .source = (uint32_t)number, .destination = 0x0a500064, .source_port = 1024, .destination_port = 80, .protocol = 6 };
}

static double hash(uint64_t entries, double seconds)
{
	struct rte_hash_parameters parameters = {
		.name = "yardstick", .entries = (uint32_t)(entries + entries / 8 + 64), .key_len = sizeof(struct flow), .hash_func = rte_hash_crc, .socket_id = SOCKET_ID_ANY,
	};
	struct rte_hash *table = rte_hash_create(&parameters);
	if (table == NULL)
		fail(rte_strerror(rte_errno));
	for (uint64_t number = 0; number < entries; number++) {
		struct flow flow = flow_of(number);
		if (rte_hash_add_key(table, &flow) < 0)
			fail("the hash is full");
	}
	struct flow flows[BULK];
	const void *keys[BULK];
	int32_t positions[BULK];
	uint64_t state = 88172645463325252u, looked = 0, found = 0;
	for (int i = 0; i < BULK; i++)
		keys[i] = &flows[i];
	double begun = cpu_seconds(), spent;
	do {
		for (int round = 0; round < ROUND / BULK; round++) {
			for (int i = 0; i < BULK; i++)
				flows[i] = flow_of(next(&state) & (entries - 1));
			if (rte_hash_lookup_bulk(table, keys, BULK, positions) < 0)
				fail("the look-up failed");
			for (int i = 0; i < BULK; i++)
				found += positions[i] >= 0;
		}
		looked += ROUND;
		spent = cpu_seconds() - begun;
	} while (spent < seconds);
	if (found != looked)
		fail("a flow was not found");
	rte_hash_free(table);
	return (double)looked / spent / 1e6;
}

int main(int count, char **words)
{
	if (count < 4)
		fail("usage: yardsticks lines|hash ENTRIES MILLIS [-- EAL_OPTIONS...]");
	uint64_t entries = strtoull(words[2], NULL, 10);
	double seconds = strtod(words[3], NULL) / 1e3;
	if (entries == 0 || (entries & (entries - 1)) || seconds <= 0)
		fail("ENTRIES is a power of two, MILLIS more than nothing");
	if (strcmp(words[1], "lines") == 0) {
		printf("%.2f\n", lines(entries, seconds));
		return 0;
	}
	if (strcmp(words[1], "hash") != 0 || count < 5)
		fail("unknown yardstick");
	if (rte_eal_init(count - 4, &words[4]) < 0)
		fail("EAL does not start");
	printf("%.2f\n", hash(entries, seconds));
	return rte_eal_cleanup() < 0;
}
