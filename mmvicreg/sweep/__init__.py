"""``mmvicreg sweep``: alternatives of one recipe, trained one after another, judged in one table (:mod:`.file`)."""
