/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl abort: asks the daemon to undo an upgrade before its commit.
 * The answer says only that it was told: the outcome is in the report that
 * upgrade and watch print.
 */
#include "ask.h"
#include "options.h"

static const char doc[] =
	"Undo the upgrade of VM that is under way. The guest runs on in the old VMM.\v"
	"The answer says that the daemon was told; \"upgradectl watch VM\" shows how it ends. An "
	"upgrade that is committed can no longer be undone.";

int verb_abort(struct cli *cli, int argc, char **argv)
{
	Upgraded__V1__AbortRequest abort = UPGRADED__V1__ABORT_REQUEST__INIT;
	struct one_vm args = { .cli = cli };
	Envelope request = ENVELOPE_INIT;

	options_one_vm(&args, false, doc, argc, argv);
	abort.name = args.name;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_ABORT;
	request.abort = &abort;
	return ask_done(cli, &request, args.name, "the daemon was told to roll back");
}
