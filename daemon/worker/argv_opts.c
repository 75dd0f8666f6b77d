/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QEMU spells the argument of an option as key=value,key=value, where a comma
 * inside a value is doubled and a first word without '=' is the value of a key
 * that depends on the option; several options also take a JSON object. Both
 * become a `struct opts` here, which can be asked, changed and written again.
 * Used by the argv_*.c files only; it owns nothing beyond what it returns.
 * What is not changed is never written from here: the plan then keeps the
 * source's own spelling, so a peculiarity that is not understood does no harm.
 */
#include "argv_opts.h"

#include "cleanup.h"

#include <string.h>

static void opt_clear(struct opt *opt)
{
	free(opt->key);
	free(opt->value);
}

void opts_freep(struct opts **o)
{
	if (!*o)
		return;
	for (size_t i = 0; i < (*o)->n; i++)
		opt_clear(&(*o)->v[i]);
	free((*o)->v);
	json_object_put((*o)->json);
	free(*o);
	*o = NULL;
}

/* Appends; takes over nothing. */
static int append(struct opts *o, const char *key, const char *value, bool implied)
{
	struct opt *v = reallocarray(o->v, o->n + 1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	o->v = v;
	v[o->n] = (struct opt){ .key = strdup(key), .implied = implied };
	if (value)
		v[o->n].value = strdup(value);
	if (!v[o->n].key || (value && !v[o->n].value)) {
		opt_clear(&v[o->n]);
		return -ENOMEM;
	}
	o->n++;
	return 0;
}

/* Copies a value up to a single comma or the end; ",," stands for one comma. */
static const char *value_end(const char *p, char *out)
{
	for (; *p; p++) {
		if (*p == ',' && *++p != ',')
			return *out = '\0', p;
		*out++ = *p;
	}
	*out = '\0';
	return p;
}

static int parse_keys(struct opts *o, const char *text, const char *implied)
{
	_cleanup_free_ char *buf = malloc(strlen(text) + 1);
	bool first = true;

	if (!buf)
		return -ENOMEM;
	for (const char *p = text; *p; first = false) {
		size_t len = strcspn(p, "=,");
		int r;

		if (p[len] == '=') {
			_cleanup_free_ char *key = strndup(p, len);

			if (!key)
				return -ENOMEM;
			p = value_end(p + len + 1, buf);
			r = append(o, key, buf, false);
		} else if (first && implied) {
			p = value_end(p, buf);
			r = append(o, implied, buf, true);
		} else {
			memcpy(buf, p, len);
			buf[len] = '\0';
			p += len + (p[len] == ',');
			r = len ? append(o, buf, NULL, false) : 0;
		}
		if (r < 0)
			return r;
	}
	return 0;
}

/* QEMU takes one JSON object with nothing behind it. */
static int parse_json(struct opts *o, const char *text)
{
	struct json_tokener *tok = json_tokener_new();
	enum json_tokener_error e;
	size_t end;

	if (!tok)
		return -ENOMEM;
	o->json = json_tokener_parse_ex(tok, text, (int)strlen(text) + 1);
	e = json_tokener_get_error(tok);
	end = json_tokener_get_parse_end(tok);
	json_tokener_free(tok);
	if (e != json_tokener_success || !json_object_is_type(o->json, json_type_object))
		return -EINVAL;
	return text[end < strlen(text) ? end + strspn(text + end, " \t\r\n") : end] ? -EINVAL : 0;
}

int opts_parse(const char *text, const char *implied, struct opts **ret_opts)
{
	_cleanup_opts_ struct opts *o = calloc(1, sizeof(*o));
	int r;

	if (!o)
		return -ENOMEM;
	r = *text == '{' ? parse_json(o, text) : parse_keys(o, text, implied);
	if (r < 0)
		return r;
	*ret_opts = TAKE_PTR(o);
	return 0;
}

/* Walks "a.b.c" down the objects; NULL when a step is missing. */
static struct json_object *json_at(struct json_object *j, const char *key)
{
	while (j) {
		size_t len = strcspn(key, ".");
		struct json_object *next = NULL;

		if (!json_object_is_type(j, json_type_object))
			return NULL;
		json_object_object_foreach (j, k, val)
			if (strlen(k) == len && !strncmp(k, key, len))
				next = val;
		if (!key[len])
			return next;
		j = next;
		key += len + 1;
	}
	return NULL;
}

const char *opts_get(const struct opts *o, const char *key)
{
	if (o->json) {
		struct json_object *j = json_at(o->json, key);

		if (json_object_is_type(j, json_type_boolean))
			return json_object_get_boolean(j) ? "on" : "off";
		return j ? json_object_get_string(j) : NULL;
	}
	for (size_t i = o->n; i-- > 0;)
		if (!strcmp(o->v[i].key, key))
			return o->v[i].value ?: "on";
	return NULL;
}

/* "nowait" is the old spelling of wait=off. */
static bool is_negated(const struct opt *opt, const char *key)
{
	return !opt->value && !strncmp(opt->key, "no", 2) && !strcmp(opt->key + 2, key);
}

bool opts_on(const struct opts *o, const char *key, bool missing)
{
	const char *value;

	for (size_t i = o->n; i-- > 0;) {
		if (is_negated(&o->v[i], key))
			return false;
		if (!strcmp(o->v[i].key, key))
			break;
	}
	value = opts_get(o, key);
	if (!value)
		return missing;
	return !strcmp(value, "on") || !strcmp(value, "yes") || !strcmp(value, "true") ||
	       !strcmp(value, "y");
}

int opts_add(struct opts *o, const char *key, const char *value)
{
	if (!o->json)
		return append(o, key, value, false);

	struct json_object *j = json_object_new_string(value);

	if (!j || json_object_object_add(o->json, key, j) < 0) {
		json_object_put(j);
		return -ENOMEM;
	}
	return 0;
}

int opts_set(struct opts *o, const char *key, const char *value)
{
	if (o->json)
		return opts_add(o, key, value);
	for (size_t i = 0; i < o->n; i++) {
		char *copy;

		if (strcmp(o->v[i].key, key) && !is_negated(&o->v[i], key))
			continue;
		copy = strdup(value);
		if (!copy)
			return -ENOMEM;
		if (is_negated(&o->v[i], key))
			memmove(o->v[i].key, o->v[i].key + 2, strlen(key) + 1);
		free(o->v[i].value);
		o->v[i].value = copy;
		/* Later ones would win over it. */
		for (size_t j = o->n; j-- > i + 1;)
			if (!strcmp(o->v[j].key, key) || is_negated(&o->v[j], key)) {
				opt_clear(&o->v[j]);
				memmove(&o->v[j], &o->v[j + 1],
					(o->n-- - j - 1) * sizeof(*o->v));
			}
		return 0;
	}
	return append(o, key, value, false);
}

bool opts_del(struct opts *o, const char *key)
{
	bool found = false;
	size_t kept = 0;

	if (o->json) {
		found = json_object_object_get_ex(o->json, key, NULL);
		json_object_object_del(o->json, key);
		return found;
	}
	for (size_t i = 0; i < o->n; i++) {
		if (!strcmp(o->v[i].key, key) || is_negated(&o->v[i], key)) {
			opt_clear(&o->v[i]);
			found = true;
		} else {
			o->v[kept++] = o->v[i];
		}
	}
	o->n = kept;
	return found;
}

static void put_value(FILE *f, const char *value)
{
	for (; *value; value++) {
		if (*value == ',')
			fputc(',', f);
		fputc(*value, f);
	}
}

int opts_print(const struct opts *o, char **ret_text)
{
	_cleanup_free_ char *text = NULL;
	size_t size;
	FILE *f;
	bool bad;

	if (o->json) {
		const char *s = json_object_to_json_string_ext(
			o->json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);

		text = s ? strdup(s) : NULL;
		if (!text)
			return -ENOMEM;
		*ret_text = TAKE_PTR(text);
		return 0;
	}
	f = open_memstream(&text, &size);
	if (!f)
		return -ENOMEM;
	for (size_t i = 0; i < o->n; i++) {
		const struct opt *opt = &o->v[i];

		if (i)
			fputc(',', f);
		/* Only a first word may stand without its key. */
		if (opt->implied && i == 0 && *opt->value && !strchr(opt->value, '=')) {
			put_value(f, opt->value);
			continue;
		}
		fputs(opt->key, f);
		if (opt->value) {
			fputc('=', f);
			put_value(f, opt->value);
		}
	}
	bad = ferror(f);
	if (fclose(f) || bad)
		return -ENOMEM;
	*ret_text = TAKE_PTR(text);
	return 0;
}
