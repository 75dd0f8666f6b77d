/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The configuration, in systemd's style: upgraded.conf, then drop-ins in the order of
 * their names, where a file in /run takes the place of one of the same name in /usr/lib,
 * and one in /etc of both. What comes later counts. All keys stand in one table; the
 * manual page of upgraded.conf(5) is held to it by a test. Read by the daemon, by
 * upgradectl config and by upgraded-outdated; whoever reads it owns the copy.
 */
#include "config.h"

#include "cleanup.h"
#include "window.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME      "upgraded.conf"
#define LINE_MAX_BYTES 1024

enum type { NUMBER, WORD, WINDOW };

static const char *const modes[] = {
	[CONFIG_OFF] = "off", [CONFIG_ASK] = "ask", [CONFIG_AUTO] = "auto", NULL
};

static const struct key {
	const char *section, *name;
	enum type type;
	long min, max;
	const char *const *words;
	const char *range, *fallback;
} keys[CONFIG_KEYS] = {
	[CONFIG_MAX_RUNNING] = { "Daemon", "MaxRunning", NUMBER, 1, 1000, NULL, "1 to 1000", "4" },
	[CONFIG_MAX_BLACKOUT] = { "Upgrade", "MaxBlackoutMSec", NUMBER, 0, 3600000, NULL,
				  "0 to 3600000, 0 is no budget", "0" },
	[CONFIG_PHASE_TIMEOUT] = { "Upgrade", "PhaseTimeoutSec", NUMBER, 1, 3600, NULL, "1 to 3600",
				   "60" },
	[CONFIG_OUTDATED_MODE] = { "Outdated", "Mode", WORD, 0, 0, modes, "off, ask or auto",
				   "off" },
	[CONFIG_OUTDATED_WINDOW] = { "Outdated", "Window", WINDOW, 0, 0, NULL,
				     "HH:MM-HH:MM, or empty", "" },
	[CONFIG_OUTDATED_MAX_PARALLEL] = { "Outdated", "MaxParallel", NUMBER, 1, 1000, NULL,
					   "1 to 1000", "1" },
	[CONFIG_OUTDATED_CANARY] = { "Outdated", "Canary", NUMBER, 0, 1000, NULL, "0 to 1000",
				     "1" },
	[CONFIG_OUTDATED_STOP_AFTER] = { "Outdated", "StopAfter", NUMBER, 0, 1000, NULL,
					 "0 to 1000, 0 is after a lost guest only", "1" },
};

const char *config_section(enum config_key key)
{
	return keys[key].section;
}

const char *config_name(enum config_key key)
{
	return keys[key].name;
}

const char *config_range(enum config_key key)
{
	return keys[key].range;
}

const char *config_default(enum config_key key)
{
	return keys[key].fallback;
}

void config_clear(struct config *c)
{
	for (size_t i = 0; i < CONFIG_KEYS; i++) {
		free(c->value[i].text);
		free(c->value[i].origin);
	}
	*c = (struct config)CONFIG_INIT;
}

/* ---- what was meant ---- */

/* How many letters must be changed, added or left out to make @b of @a. */
static size_t distance(const char *a, const char *b)
{
	size_t row[64], n = strlen(b);

	if (n >= ARRAY_SIZE(row))
		return SIZE_MAX;
	for (size_t k = 0; k <= n; k++)
		row[k] = k;
	for (size_t i = 0; a[i]; i++) {
		size_t before = row[0];

		row[0] = i + 1;
		for (size_t k = 1; k <= n; k++) {
			size_t change = before + (tolower((unsigned char)a[i]) !=
						  tolower((unsigned char)b[k - 1]));
			size_t least = row[k] < row[k - 1] ? row[k] + 1 : row[k - 1] + 1;

			before = row[k];
			row[k] = change < least ? change : least;
		}
	}
	return row[n];
}

/* The nearest name, or NULL when none is near. @section: that a key must be in, or NULL. */
static const char *nearest(const char *text, const char *section)
{
	size_t best = strlen(text) / 3 + 1;
	const char *found = NULL;

	for (size_t i = 0; i < CONFIG_KEYS; i++) {
		const char *name = section ? keys[i].name : keys[i].section;
		size_t d = distance(text, name);

		if ((section && strcmp(section, keys[i].section)) || d > best)
			continue;
		best = d;
		found = name;
	}
	return found;
}

/* ---- one line ---- */

struct place {
	const char *path;
	unsigned line;
	char section[LINE_MAX_BYTES];
};

static int wrong_name(const struct place *at, const char *what, const char *name,
		      const char *section, struct error *err)
{
	const char *meant = nearest(name, section);

	error_set(err, -EINVAL, "%s:%u: there is no %s %s", at->path, at->line, what, name);
	if (meant)
		return error_hint(err, "%s, perhaps; upgradectl config shows what there is", meant);
	return error_hint(err, "upgradectl config shows what there is");
}

static int parse_number(const struct key *key, const char *text, long *ret)
{
	char *end;

	errno = 0;
	*ret = strtol(text, &end, 10);
	return errno || end == text || *end || *ret < key->min || *ret > key->max ? -EINVAL : 0;
}

static int parse_word(const struct key *key, const char *text, long *ret)
{
	for (*ret = 0; key->words[*ret]; ++*ret)
		if (!strcmp(key->words[*ret], text))
			return 0;
	return -EINVAL;
}

/* Or nothing, which is always. */
static int parse_window(const char *text)
{
	struct window w;

	return *text ? window_parse(text, &w) : 0;
}

/* Takes nothing; *v is as it was if it fails. */
static int set_value(struct config_value *v, const struct key *key, const char *text,
		     const struct place *at, struct error *err)
{
	char *copy, *origin = NULL;
	long number = 0;
	int r;

	r = key->type == NUMBER ? parse_number(key, text, &number)
	    : key->type == WORD ? parse_word(key, text, &number)
				: parse_window(text);
	if (r < 0) {
		error_set(err, r, "%s:%u: %s= is not '%s'", at->path, at->line, key->name, text);
		return error_hint(err, "%s=%s", key->name, key->range);
	}
	copy = strdup(text);
	if (at && asprintf(&origin, "%s:%u", at->path, at->line) < 0)
		origin = NULL;
	if (!copy || (at && !origin)) {
		free(copy);
		free(origin);
		return -ENOMEM;
	}
	free(v->text);
	free(v->origin);
	*v = (struct config_value){ .text = copy, .origin = origin, .number = number };
	return 0;
}

static int parse_key(struct config *c, const struct place *at, char *line, struct error *err)
{
	char *value = strchr(line, '='), *end = value;

	if (!value)
		return error_set(err, -EINVAL, "%s:%u: '%s' is neither a [section] nor a Key=value",
				 at->path, at->line, line);
	while (end > line && isspace((unsigned char)end[-1]))
		end--;
	*end = '\0';
	value += 1 + strspn(value + 1, " \t");
	for (size_t i = 0; i < CONFIG_KEYS; i++)
		if (!strcmp(keys[i].section, at->section) && !strcmp(keys[i].name, line))
			return set_value(&c->value[i], &keys[i], value, at, err);
	return *at->section ? wrong_name(at, "key", line, at->section, err)
			    : error_set(err, -EINVAL, "%s:%u: %s= stands in no [section]", at->path,
					at->line, line);
}

static int parse_section(struct place *at, char *line, struct error *err)
{
	char *end = strchr(line, ']');

	if (!end || end[1])
		return error_set(err, -EINVAL, "%s:%u: '%s' is no [section]", at->path, at->line,
				 line);
	*end = '\0';
	for (size_t i = 0; i < CONFIG_KEYS; i++)
		if (!strcmp(keys[i].section, line + 1)) {
			strcpy(at->section, line + 1);
			return 0;
		}
	return wrong_name(at, "section", line + 1, NULL, err);
}

/* ---- files ---- */

static int read_file(struct config *c, const char *path, struct error *err)
{
	struct place at = { .path = path };
	char line[LINE_MAX_BYTES];
	FILE *f = fopen(path, "re");
	int r = 0;

	if (!f)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "cannot read %s", path);
	while (r >= 0 && fgets(line, sizeof(line), f)) {
		char *begin = line + strspn(line, " \t\r\n"), *end = line + strlen(line);

		at.line++;
		if (end == line + sizeof(line) - 1 && end[-1] != '\n')
			r = error_set(err, -EINVAL, "%s:%u: the line is too long", path, at.line);
		while (end > begin && isspace((unsigned char)end[-1]))
			*--end = '\0';
		if (r < 0 || !*begin || *begin == '#' || *begin == ';')
			continue;
		r = *begin == '[' ? parse_section(&at, begin, err) : parse_key(c, &at, begin, err);
	}
	if (r >= 0 && ferror(f))
		r = error_errno(err, -EIO, "cannot read %s", path);
	fclose(f);
	return r;
}

struct drop_ins {
	struct drop_in {
		char *name, *path;
	} * v;
	size_t n;
};

static void free_drop_ins(struct drop_ins *d)
{
	for (size_t i = 0; i < d->n; i++) {
		free(d->v[i].name);
		free(d->v[i].path);
	}
	free(d->v);
}

/* One of the same name has been found in a directory that comes before: that one counts. */
static bool is_hidden(const struct drop_ins *d, const char *name)
{
	for (size_t i = 0; i < d->n; i++)
		if (!strcmp(d->v[i].name, name))
			return true;
	return false;
}

static int find_drop_ins(struct drop_ins *d, const char *root, const char *where)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_closedir_ DIR *dir = NULL;

	if (asprintf(&path, "%s%s/" FILE_NAME ".d", root, where) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? 0 : -errno;
	for (struct dirent *de; (de = readdir(dir));) {
		size_t len = strlen(de->d_name);
		struct drop_in *grown, new = { 0 };

		if (len < 6 || de->d_name[0] == '.' || strcmp(de->d_name + len - 5, ".conf") ||
		    is_hidden(d, de->d_name))
			continue;
		grown = reallocarray(d->v, d->n + 1, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		d->v = grown;
		new.name = strdup(de->d_name);
		if (!new.name || asprintf(&new.path, "%s/%s", path, de->d_name) < 0) {
			free(new.name);
			return -ENOMEM;
		}
		d->v[d->n++] = new;
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct drop_in *)a)->name, ((const struct drop_in *)b)->name);
}

int config_defaults(struct config *ret)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	for (size_t i = 0; i < CONFIG_KEYS; i++)
		if (set_value(&ret->value[i], &keys[i], keys[i].fallback, NULL, &err) < 0) {
			config_clear(ret);
			return -ENOMEM;
		}
	return 0;
}

static int load(const char *root, struct config *c, struct error *err)
{
	/* The first has the last word, by name. */
	static const char *const dirs[] = { "/etc/upgraded", "/run/upgraded", "/usr/lib/upgraded" };
	__attribute__((cleanup(free_drop_ins))) struct drop_ins found = { 0 };
	_cleanup_free_ char *path = NULL;
	int r;

	r = config_defaults(c);
	if (r < 0)
		return r;
	if (asprintf(&path, "%s%s/" FILE_NAME, root, dirs[0]) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	r = read_file(c, path, err);
	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(dirs); i++) {
		r = find_drop_ins(&found, root, dirs[i]);
		if (r < 0)
			return error_errno(err, r, "cannot read %s%s/" FILE_NAME ".d", root,
					   dirs[i]);
	}
	if (found.n)
		qsort(found.v, found.n, sizeof(*found.v), by_name);
	for (size_t i = 0; r >= 0 && i < found.n; i++)
		r = read_file(c, found.v[i].path, err);
	return r;
}

int config_load(const char *root, struct config *ret, struct error *err)
{
	int r = load(root, ret, err);

	if (r < 0)
		config_clear(ret);
	return r < 0 && !err->code ? error_set(err, r, "out of memory") : r;
}
