/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs a fuzzing harness over files instead of under libFuzzer: each argument
 * is a seed or a directory of seeds. So the seeds, and every input that once
 * crashed, are replayed by each `meson test` with any compiler.
 */
#include "cleanup.h"

#include <stdint.h>
#include <sys/stat.h>

#define INPUT_MAX (1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
	_cleanup_free_ uint8_t *data = malloc(INPUT_MAX);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	size_t size;

	if (!f || !data) {
		perror(path);
		return -1;
	}
	size = fread(data, 1, INPUT_MAX, f);
	/* Known before a crash, for the one who looks at it. */
	printf("%s (%zu bytes)\n", path, size);
	fflush(stdout);
	LLVMFuzzerTestOneInput(data, size);
	return 1;
}

static int replay_dir(const char *path)
{
	_cleanup_closedir_ DIR *dir = opendir(path);
	int n = 0;

	if (!dir) {
		perror(path);
		return -1;
	}
	for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
		_cleanup_free_ char *file = NULL;

		if (e->d_name[0] == '.')
			continue;
		if (asprintf(&file, "%s/%s", path, e->d_name) < 0 || replay_file(file) < 0)
			return -1;
		n++;
	}
	return n;
}

int main(int argc, char **argv)
{
	int n = 0;

	for (int i = 1; i < argc; i++) {
		struct stat st;
		int r;

		if (stat(argv[i], &st) < 0) {
			perror(argv[i]);
			return 1;
		}
		r = S_ISDIR(st.st_mode) ? replay_dir(argv[i]) : replay_file(argv[i]);
		if (r < 0)
			return 1;
		n += r;
	}
	printf("%d inputs\n", n);
	/* No seeds is no test. */
	return n ? 0 : 1;
}
