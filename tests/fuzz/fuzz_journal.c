/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes the journal with files that crashes, full disks and other versions might
 * leave. The first byte, odd: the rest are records (two bytes of length each), to be
 * framed with good checksums; even: the rest is the file. What must hold: it opens
 * or says why; a record that was appended is the last one that is read; and a
 * journal of a newer version is left as it was.
 */
#include "cleanup.h"
#include "frames.h"
#include "journal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/dev/shm/upgraded-fuzz-journal-XXXXXX";

static void remove_dir(void)
{
	_cleanup_free_ char *path = NULL;

	if (asprintf(&path, "%s/journal", dir) >= 0)
		unlink(path);
	rmdir(dir);
}

static void write_frames(int fd, const uint8_t *data, size_t size)
{
	while (size >= 2) {
		size_t len = data[0] | (size_t)data[1] << 8;

		data += 2;
		size -= 2;
		len = len < size ? len : size;
		if (len && frame_append(fd, data, len) < 0)
			abort();
		data += len;
		size -= len;
	}
}

struct replay {
	size_t n;
	uint64_t last;
};

static int seen(const JournalRecord *record, void *userdata)
{
	struct replay *r = userdata;

	r->n++;
	r->last = record->upgrade_id;
	return 0;
}

static void use(struct journal *j, struct error *err)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	struct replay before = { 0 }, after = { 0 };
	bool newer = journal_writable(j, err) < 0;

	error_clear(err);
	if (journal_replay(j, seen, &before, err) < 0 && !err->text)
		abort();
	error_clear(err);
	record.upgrade_id = 0x5eed;
	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__PHASE;
	if (journal_append(j, &record, err) < 0) {
		if (!newer || !err->text)
			abort();
		return;
	}
	if (newer)
		abort();
	error_clear(err);
	if (journal_replay(j, seen, &after, err) < 0)
		abort();
	if (after.n != before.n + 1 || after.last != 0x5eed)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *path = NULL;
	struct journal *j = NULL;
	static bool made;
	int fd;

	if (!size)
		return 0;
	if (!made) {
		if (!mkdtemp(dir))
			abort();
		atexit(remove_dir);
		made = true;
	}
	if (asprintf(&path, "%s/journal", dir) < 0)
		abort();
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		abort();
	if (data[0] & 1)
		write_frames(fd, data + 1, size - 1);
	else if (write(fd, data + 1, size - 1) != (ssize_t)(size - 1))
		abort();
	close(fd);
	if (journal_open(dir, &j, &err) < 0) {
		if (!err.text)
			abort();
		return 0;
	}
	use(j, &err);
	journal_freep(&j);
	return 0;
}
