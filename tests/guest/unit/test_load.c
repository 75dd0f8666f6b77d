/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checkers of the test load must go red: each test breaks one thing on purpose and wants it
 * named.
 *
 * Run natively by `meson test`; it owns a temporary file.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../load/disk.h"
#include "../load/options.h"
#include "../load/page.h"
#include "../load/report.h"
#include "../load/stream.h"
#include "../peer/echo.h"

static void every_flipped_bit_of_a_page_is_seen(void **state)
{
	struct load_page page;
	uint8_t *byte = (uint8_t *)&page;

	page_write(&page, 17, 3);
	assert_int_equal(page_check(&page, 17, 3), PAGE_OK);
	for (unsigned bit = 0; bit < LOAD_PAGE_SIZE * 8; bit++) {
		byte[bit / 8] ^= (uint8_t)(1U << bit % 8);
		if (page_check(&page, 17, 3) != PAGE_BAD_CHECKSUM)
			fail_msg("bit %u was flipped and not seen", bit);
		byte[bit / 8] ^= (uint8_t)(1U << bit % 8);
	}
	assert_int_equal(page_check(&page, 17, 3), PAGE_OK);
}

static void a_stale_page_is_told_from_a_damaged_one(void **state)
{
	struct load_page page;

	page_write(&page, 17, 3);
	assert_int_equal(page_check(&page, 17, 4), PAGE_BAD_GENERATION);
	assert_int_equal(page_check(&page, 18, 3), PAGE_BAD_INDEX);
	memset(&page, 0, sizeof(page));
	assert_int_equal(page_check(&page, 0, 0), PAGE_BAD_CHECKSUM);
}

static void swapped_words_of_a_page_are_seen(void **state)
{
	struct load_page page;
	uint64_t t;

	page_write(&page, 1, 1);
	t = page.fill[8];
	page.fill[8] = page.fill[12]; /* of the same lane: a plain sum would not notice */
	page.fill[12] = t;
	assert_int_equal(page_check(&page, 1, 1), PAGE_BAD_CHECKSUM);
}

static struct disk new_disk(char *ret_path)
{
	struct disk d;
	int fd;

	strcpy(ret_path, "load-disk-XXXXXX");
	fd = mkstemp(ret_path);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(disk_open(ret_path, 1, 0x1234, &d), 0);
	assert_int_equal(d.blocks, 256);
	return d;
}

static enum disk_verdict verdict(struct disk *d, uint64_t number)
{
	enum disk_verdict v;
	uint64_t sequence;

	assert_int_equal(disk_verify(d, number, &v, &sequence), 0);
	return v;
}

static void write_synced(struct disk *d, uint64_t number)
{
	assert_int_equal(disk_write(d, number), 0);
	assert_int_equal(disk_sync(d), 0);
}

static void a_write_lost_after_fsync_is_seen(void **state)
{
	static _Alignas(DISK_BLOCK) uint8_t old[DISK_BLOCK];
	char path[32];
	struct disk d = new_disk(path);

	write_synced(&d, 5);
	assert_int_equal(pread(d.fd, old, DISK_BLOCK, 5 * DISK_BLOCK), DISK_BLOCK);
	write_synced(&d, 5);
	assert_int_equal(verdict(&d, 5), DISK_OK);
	assert_int_equal(pwrite(d.fd, old, DISK_BLOCK, 5 * DISK_BLOCK), DISK_BLOCK);
	assert_int_equal(verdict(&d, 5), DISK_LOST);
	unlink(path);
	disk_close(&d);
}

static void a_block_never_written_by_the_disk_is_seen(void **state)
{
	static const _Alignas(DISK_BLOCK) uint8_t zero[DISK_BLOCK];
	char path[32];
	struct disk d = new_disk(path);

	write_synced(&d, 6);
	assert_int_equal(pwrite(d.fd, zero, DISK_BLOCK, 6 * DISK_BLOCK), DISK_BLOCK);
	assert_int_equal(verdict(&d, 6), DISK_WRONG);
	unlink(path);
	disk_close(&d);
}

static void a_flipped_bit_on_disk_is_seen(void **state)
{
	static _Alignas(DISK_BLOCK) uint8_t block[DISK_BLOCK];
	char path[32];
	struct disk d = new_disk(path);

	write_synced(&d, 7);
	assert_int_equal(pread(d.fd, block, DISK_BLOCK, 7 * DISK_BLOCK), DISK_BLOCK);
	block[4095] ^= 1;
	assert_int_equal(pwrite(d.fd, block, DISK_BLOCK, 7 * DISK_BLOCK), DISK_BLOCK);
	assert_int_equal(verdict(&d, 7), DISK_WRONG);
	unlink(path);
	disk_close(&d);
}

static void a_block_at_another_place_is_seen(void **state)
{
	static _Alignas(DISK_BLOCK) uint8_t block[DISK_BLOCK];
	char path[32];
	struct disk d = new_disk(path);

	write_synced(&d, 8);
	write_synced(&d, 9);
	assert_int_equal(pread(d.fd, block, DISK_BLOCK, 8 * DISK_BLOCK), DISK_BLOCK);
	assert_int_equal(pwrite(d.fd, block, DISK_BLOCK, 9 * DISK_BLOCK), DISK_BLOCK);
	assert_int_equal(verdict(&d, 9), DISK_WRONG);
	assert_int_equal(verdict(&d, 8), DISK_OK);
	unlink(path);
	disk_close(&d);
}

static void nothing_is_promised_before_the_fsync(void **state)
{
	char path[32];
	struct disk d = new_disk(path);
	enum disk_verdict v;
	uint64_t sequence;

	assert_int_equal(disk_write(&d, 3), 0);
	assert_int_equal(disk_verify(&d, 3, &v, &sequence), 0);
	assert_int_equal(v, DISK_OK);
	assert_int_equal(sequence, 0); /* not judged */
	assert_int_equal(disk_sync(&d), 0);
	assert_int_equal(disk_verify(&d, 3, &v, &sequence), 0);
	assert_int_equal(sequence, 1);
	unlink(path);
	disk_close(&d);
}

static void a_missing_device_is_not_made_a_file(void **state)
{
	struct disk d;

	assert_int_equal(disk_open("/dev/no-such-disk", 1, 1, &d), -ENOENT);
	assert_int_equal(access("/dev/no-such-disk", F_OK), -1);
}

static void a_gap_in_the_stream_is_seen_at_its_byte(void **state)
{
	uint8_t buf[1000];

	stream_fill(42, 12345, buf, sizeof(buf));
	assert_int_equal(stream_check(42, 12345, buf, sizeof(buf)), sizeof(buf));
	for (unsigned lost = 1; lost < 20; lost++) {
		stream_fill(42, 12345, buf, 500);
		stream_fill(42, 12345 + 500 + lost, buf + 500, 500);
		/* by chance the first byte after the gap may be the right one, but not four of them
		 */
		assert_in_range(stream_check(42, 12345, buf, sizeof(buf)), 500, 503);
	}
	stream_fill(42, 12345, buf, sizeof(buf));
	buf[777] ^= 0x80;
	assert_int_equal(stream_check(42, 12345, buf, sizeof(buf)), 777);
	assert_in_range(stream_check(43, 12345, buf, sizeof(buf)), 0, 3);
}

/* Sends a hello and 4096 bytes, the last 96 of them from `skip` further on; returns the totals. */
static struct echo_totals through_the_peer(uint64_t skip, uint64_t magic)
{
	struct stream_hello hello = { .magic = magic, .seed = 7 };
	struct echo_totals totals = { 0 };
	uint8_t buf[4096], back[4096];
	bool in, out;
	struct echo *e;
	int s[2], r;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s), 0);
	e = echo_new(s[1], 1, &totals);
	stream_fill(7, 0, buf, 4000);
	stream_fill(7, 4000 + skip, buf + 4000, 96);
	/* the hello in two parts */
	assert_int_equal(write(s[0], &hello, 5), 5);
	assert_int_equal(echo_step(e, 2, &totals, &in, &out), 0);
	assert_int_equal(write(s[0], (uint8_t *)&hello + 5, sizeof(hello) - 5), sizeof(hello) - 5);
	assert_int_equal(write(s[0], buf, sizeof(buf)), sizeof(buf));
	shutdown(s[0], SHUT_WR);
	for (unsigned i = 0; (r = echo_step(e, 5000002, &totals, &in, &out)) == 0; i++)
		assert_true(i < 10);
	echo_end(e, r, &totals);
	if (magic == STREAM_MAGIC) {
		assert_int_equal(read(s[0], back, sizeof(back)), sizeof(back));
		assert_memory_equal(buf, back, sizeof(buf));
	}
	close(s[0]);
	return totals;
}

static void the_peer_counts_a_gap_and_echoes_it(void **state)
{
	struct echo_totals t = through_the_peer(0, STREAM_MAGIC);

	assert_int_equal(t.sequence_errors, 0);
	assert_int_equal(t.bytes_in, 4096);
	assert_int_equal(t.closed, 1);
	assert_int_equal(t.longest_stall_us, 5000);
	t = through_the_peer(1, STREAM_MAGIC);
	assert_int_equal(t.sequence_errors, 1);
	assert_int_equal(t.bytes_out, 4096);
}

static void the_peer_refuses_a_stranger(void **state)
{
	struct echo_totals t = through_the_peer(0, 1);

	assert_int_equal(t.bad_hellos, 1);
	assert_int_equal(t.bytes_out, 0);
}

static void the_command_line_is_read(void **state)
{
	struct load_options o;
	char bad[64] = "";

	options_default(&o, true);
	assert_int_equal(
		options_parse_cmdline(
			&o,
			"console=ttyS0 load.mem=128 quiet load.disk=/dev/vda load.net=10.77.0.2/24 "
			"load.peer=10.77.0.1:7777 load.hb=0x402 load.inject=mem,hb\n",
			bad, sizeof(bad)),
		0);
	assert_int_equal(o.mem_mb, 128);
	assert_string_equal(o.disk, "/dev/vda");
	assert_string_equal(o.peer, "10.77.0.1:7777");
	assert_int_equal(o.hb_port, 0x402);
	assert_int_equal(o.inject, INJECT_MEM | INJECT_HB);
}

static void a_setting_not_understood_is_an_error(void **state)
{
	static const char *const wrong[] = {
		"load.mem=lots",
		"load.mem=-1",
		"load.memory=64",
		"load.net=10.77.0.2",
		"load.peer=10.77.0.1:99999",
		"load.inject=meme",
		"load.clock=2",
		"load.hb_us=0",
		"load.mem",
		"load.disk_mb=0",
	};

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct load_options o;
		char bad[64] = "";

		options_default(&o, true);
		if (options_parse_cmdline(&o, wrong[i], bad, sizeof(bad)) >= 0)
			fail_msg("%s was taken", wrong[i]);
		assert_string_equal(bad, wrong[i]);
	}
}

/* Reads all lines there are; every one must be whole. */
static unsigned read_lines(int fd, char *ret_last, size_t size)
{
	static char all[1 << 20];
	size_t len = 0;
	unsigned lines = 0;
	ssize_t n;

	while ((n = read(fd, all + len, sizeof(all) - 1 - len)) > 0)
		len += (size_t)n;
	all[len] = 0;
	for (char *p = all, *end; (end = strchr(p, '\n')); p = end + 1) {
		*end = 0;
		assert_int_equal(p[0], '<');
		assert_int_equal(end[-1], '>');
		assert_true((size_t)(end - p) < size);
		strcpy(ret_last, p);
		lines++;
	}
	return lines;
}

static void a_reader_that_sleeps_gets_whole_lines_and_the_newest(void **state)
{
	struct report_out *out = calloc(1, sizeof(*out));
	char line[1024], last[1024];
	int p[2];

	assert_non_null(out);
	assert_int_equal(pipe2(p, O_NONBLOCK), 0);
	out->fd = p[1];
	for (int i = 0; i < 500; i++) {
		size_t n = (size_t)snprintf(line, sizeof(line), "<%d %0*d>\n", i, 700, 0);

		report_put(out, line, n); /* must not wait */
	}
	assert_true(count_get(&out->dropped) > 0);
	assert_true(read_lines(p[0], last, sizeof(last)) > 10);
	report_push(out);
	report_push(out);
	assert_int_equal(read_lines(p[0], last, sizeof(last)), 1);
	assert_int_equal(atoi(last + 1), 499);
	close(p[0]);
	close(p[1]);
	free(out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_flipped_bit_of_a_page_is_seen),
		cmocka_unit_test(a_stale_page_is_told_from_a_damaged_one),
		cmocka_unit_test(swapped_words_of_a_page_are_seen),
		cmocka_unit_test(a_write_lost_after_fsync_is_seen),
		cmocka_unit_test(a_block_never_written_by_the_disk_is_seen),
		cmocka_unit_test(a_flipped_bit_on_disk_is_seen),
		cmocka_unit_test(a_block_at_another_place_is_seen),
		cmocka_unit_test(nothing_is_promised_before_the_fsync),
		cmocka_unit_test(a_missing_device_is_not_made_a_file),
		cmocka_unit_test(a_gap_in_the_stream_is_seen_at_its_byte),
		cmocka_unit_test(the_peer_counts_a_gap_and_echoes_it),
		cmocka_unit_test(the_peer_refuses_a_stranger),
		cmocka_unit_test(the_command_line_is_read),
		cmocka_unit_test(a_setting_not_understood_is_an_error),
		cmocka_unit_test(a_reader_that_sleeps_gets_whole_lines_and_the_newest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
