"""Named faults: one wrong line each, and the fast test that must go red. What no test would notice is not tested.

`old` stands exactly once in `file` (below src/crossfade). Names say what is wrong, as a bug report would. What only a
real broker can show has `lab=True`: its test starts servers.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    test: str
    lab: bool = False


ENUMERATION = "tests/model/test_enumeration.py::test_every_outcome_of_every_step"
CONTRACT = "tests/contract/test_log_contract.py"
SIMULATION = "tests/model/test_simulation.py::test_seeds"
MAPPING = "tests/unit/test_mapping.py"
PARTITIONER = "tests/unit/test_partitioner.py"
WIRE = "tests/unit/test_wire.py"
MEMORY = "tests/unit/test_memory.py"
LANES = "tests/unit/test_relay_lanes.py"
NAMES = "tests/model/test_names.py"
RECKONING = "tests/unit/test_redis_reckoning.py"
TAIL = "tests/unit/test_kafka_tail.py"
WRITER = "tests/unit/test_kafka_writer.py"
REDIS_SERVER = "tests/contract/test_redis_server.py"
KAFKA_CLAIMS = "tests/contract/test_kafka_claims.py"
KAFKA_APPENDS = "tests/contract/test_kafka_appends.py"
KAFKA_GROUP = "tests/contract/test_kafka_group.py"
KAFKA_SOURCE = "tests/contract/test_kafka_source.py"

MUTANTS = [
    # -- partitioners ----------------------------------------------------------------------------------------------
    Mutant(
        "murmur2-negates-instead-of-masking",
        "model/partitioner.py",
        "return (murmur2(key) & 0x7FFFFFFF) % lanes",
        "return abs(murmur2(key) - ((murmur2(key) >> 31) << 32)) % lanes",
        f"{PARTITIONER}::test_murmur2_lane_masks_the_sign_and_does_not_negate",
    ),
    Mutant(
        "murmur2-wrong-seed",
        "model/partitioner.py",
        "hashed = 0x9747B28C ^ size",
        "hashed = size",
        f"{PARTITIONER}::test_murmur2_matches_the_java_client",
    ),
    Mutant(
        "murmur3-sign-forgotten",
        "model/partitioner.py",
        "return (hashed if hashed <= 0x80000000 else 0x100000000 - hashed) % lanes",
        "return hashed % lanes",
        f"{PARTITIONER}::test_murmur3_negates_a_negative_hash",
    ),
    Mutant(
        "murmur3-tail-not-mixed",
        "model/partitioner.py",
        'hashed ^= _murmur3_word(int.from_bytes(key[whole:], "little"))',
        'hashed ^= int.from_bytes(key[whole:], "little")',
        f"{PARTITIONER}::test_murmur3_matches_the_reference",
    ),
    Mutant(
        "keyless-records-all-in-lane-0",
        "model/partitioner.py",
        "return source_lane % lanes if key is None else seen[key]",
        'return seen[b"" if key is None else key]',
        f"{PARTITIONER}::test_without_a_key_the_source_lane_decides",
    ),
    Mutant(
        "key-memory-grows-for-ever",
        "model/partitioner.py",
        "if len(self) >= KEYS_REMEMBERED_MAX:",
        "if len(self) < 0:",
        f"{PARTITIONER}::test_the_memory_of_keys_is_bounded",
    ),
    # -- mapping and wire --------------------------------------------------------------------------------------------
    Mutant(
        "packed-form-meets-canonical-form",
        "model/lossless.py",
        "if headers or value is None or packed_entry(key, value, key_field) is None:",
        "if True:",
        f"{MAPPING}::test_any_other_layout_is_packed",
    ),
    Mutant(
        "packed-chain-followed-one-level-only",
        "model/lossless.py",
        "        if not value.startswith(MAGIC, start, end):\n            return None\n",
        "        return outermost if value.startswith(MAGIC, start, end) else None\n",
        f"{MAPPING}::test_a_thousand_levels_of_packing_cost_their_length_once",
    ),
    Mutant(
        "fast-path-forgets-the-magic",
        "model/mapping.py",
        "if not headers and key is not None and value is not None and not value.startswith(MAGIC)",
        "if not headers and key is not None and value is not None",
        f"{MAPPING}::test_every_entry_comes_back_from_kafka",
    ),
    Mutant(
        "columns-forget-the-magic",
        "model/mapping.py",
        "return bool(values) and max(values) >= MAGIC and True in map(_begins_packed, values)",
        "return False",
        "tests/unit/test_columns.py::test_mappings_do_not_see_a_difference",
    ),
    Mutant(
        "a-slow-step-counts-as-distant",
        "brokers/kafka/writer.py",
        "self._is_spent = self._is_spent or took_s > once_s",
        "self._is_spent = self._is_spent or took_s > max(once_s, 2 * DOUBT_S)",
        "tests/unit/test_kafka_writer.py::test_behind_a_step_that_may_have_been_sent_twice_the_producer_is_spent",
    ),
    Mutant(
        "a-spent-producer-goes-on",
        "brokers/kafka/writer.py",
        'invariant(not self._is_spent, "a producer whose requests may come late gets no further transaction")',
        "pass",
        "tests/unit/test_kafka_writer.py::test_a_slow_transaction_is_committed_and_is_the_last_one_of_its_producer",
    ),
    Mutant(
        "null-header-becomes-empty",
        "model/lossless.py",
        'fields += (HEADER_NULL + encoded, b"") if content is None else (HEADER + encoded, content)',
        'fields += (HEADER + encoded, content or b"")',
        f"{MAPPING}::test_the_canonical_layout",
    ),
    Mutant(
        "tombstone-becomes-empty-value",
        "model/lossless.py",
        "    if value is not None:\n        fields += (VALUE, value)\n",
        '    fields += (VALUE, value or b"")\n',
        f"{MAPPING}::test_the_canonical_layout",
    ),
    Mutant(
        "user-data-named-xf-is-stripped",
        "model/lossless.py",
        "        origin = decode_origin(content) if name == XF else None\n        if origin is None:\n",
        "        origin = decode_origin(content) if name == XF else None\n        if name != XF:\n",
        f"{MAPPING}::test_an_xf_that_is_no_origin_is_user_data",
    ),
    Mutant(
        "own-time-is-lost-at-the-second-hop",
        "model/lossless.py",
        "        elif origin.time_ms is not None:\n            time_ms = origin.time_ms\n",
        "        elif origin.time_ms is not None:\n            pass\n",
        f"{MAPPING}::test_copies_within_one_shape_only_lose_the_origin",
    ),
    Mutant(
        "rejected-record-fails-its-batch",
        "model/mapping.py",
        "        return convert(*row)\n    except NotCarried as reason:",
        "        return convert(*row)\n    except ZeroDivisionError as reason:",
        f"{MAPPING}::test_a_row_that_cannot_be_carried_leaves_the_batch_with_its_reason",
    ),
    Mutant(
        "rejected-record-shifts-positions",
        "model/mapping.py",
        "            positions.append(position)\n",
        "            positions.append(batch.positions[len(positions)])\n",
        f"{MAPPING}::test_a_row_that_cannot_be_carried_leaves_the_batch_with_its_reason",
    ),
    Mutant(
        "json-repeats-lost-in-silence",
        "model/mapping.py",
        "            if name in names:\n",
        "            if name in names and self._drop:\n",
        f"{MAPPING}::test_json_refuses_what_is_no_text",
    ),
    Mutant(
        "positions-compared-as-text",
        "model/position.py",
        "return (int(head), int(tail) if tail else 0)",
        "return (head, tail)  # type: ignore",
        f"{WIRE}::test_order_of_positions_is_not_the_order_of_texts",
    ),
    Mutant(
        "hostile-xf-kills-the-reader",
        "model/wire.py",
        'if name == "t" and _OWN_TIME.fullmatch(value):',
        'if name == "t" and value.lstrip("-").isdigit():',
        f"{WIRE}::test_no_text_of_an_application_breaks_the_reader",
    ),
    Mutant(
        "newer-marker-read-anyway",
        "model/wire.py",
        'if version != "1":',
        'if version == "":',
        f"{WIRE}::test_a_newer_marker_is_refused_with_words",
    ),
    # -- the relay -----------------------------------------------------------------------------------------------------
    Mutant(
        "resumes-from-memory-instead-of-the-marker",
        "relay/entering.py",
        "            state.place = state.settled\n            state.settle_deleted()",
        "            state.place = before.place if before else state.settled\n            state.settle_deleted()",
        f"{ENUMERATION}[redis-to-kafka-1-append]",
    ),
    Mutant(
        "markers-of-idle-lanes-never-written-again",
        "relay/copier.py",
        "self._take(self._idle_markers(after, batches) | batches, after)",
        "self._take(batches, after)",
        "tests/model/test_lane_halts.py::test_the_markers_of_idle_lanes_are_kept_alive",
    ),
    Mutant(
        "lane-revived-under-its-own-append",
        "relay/copier.py",
        "            if may_read_on:\n",
        "            if reading is None:\n",
        "tests/model/test_lane_halts.py::test_a_lane_paused_and_resumed_under_its_own_append_is_not_copied_twice",
    ),
    Mutant(
        "plan-behind-a-failed-append-kept",
        "relay/copier.py",
        "for write in planned if self.lanes[write.path[0]].place is write.place]\n",
        "for write in planned]\n",
        "tests/model/test_lane_halts.py",
    ),
    Mutant(
        "quarantine-budget-of-before-the-append",
        "relay/copier.py",
        "            write.quarantine_left = self.limits.quarantine_records_max",
        "            _ = self.limits.quarantine_records_max",
        "tests/model/test_lane_halts.py",
    ),
    Mutant(
        "idle-while-an-append-is-under-way",
        "relay/copier.py",
        "                if lane in self._in_flight:\n",
        "                if False:\n",
        "tests/model/test_lane_halts.py",
    ),
    Mutant(
        "read-of-another-place-taken",
        "relay/copier.py",
        "            if state.place is not after[lane]:\n",
        "            if False:\n",
        "tests/model/test_lane_halts.py::test_a_read_from_where_the_lane_no_longer_stands_is_not_taken",
    ),
    Mutant(
        "append-repeated-after-a-doubt",
        "relay/copier.py",
        "            except Indeterminate:\n                self._batch.halve()\n                raise\n",
        "            except BrokerError:\n"
        "                outcomes = await self.target.append(claim, writes, on_sent)\n",
        f"{ENUMERATION}[redis-to-kafka-1-append]",
    ),
    Mutant(
        "place-not-set-back-after-a-failed-append",
        "relay/lanes.py",
        "        self.error = error\n        self.place = self.settled\n",
        "        self.error = error\n",
        f"{LANES}",
    ),
    Mutant(
        "lane-revived-where-it-read-instead-of-where-it-settled",
        "relay/lanes.py",
        "        self.state = State.COPYING\n        self.place = self.settled\n",
        "        self.state = State.COPYING\n",
        f"{LANES}::test_a_lane_comes_back_where_it_settled_not_where_it_stood_when_it_was_paused",
    ),
    Mutant(
        "halted-lane-goes-on",
        "relay/lanes.py",
        "        else:\n            self.state = State.HALTED\n",
        "        else:\n            self.state = State.COPYING\n",
        f"{SIMULATION}[source-trimmed]",
    ),
    Mutant(
        "resumes-from-the-largest-marker",
        "relay/lanes.py",
        "    return min([place for place",
        "    return max([place for place",
        f"{LANES}::test_a_lane_resumes_from_its_smallest_marker",
    ),
    Mutant(
        "covered-rows-copied-again",
        "relay/fanout.py",
        "if ragged and order_of(position) <= covered[path]:",
        "if ragged and order_of(position) < covered[path]:",
        "tests/model/test_regress.py::test_a_path_that_is_ahead_does_not_go_back",
    ),
    Mutant(
        "marker-of-a-path-ahead-goes-back",
        "relay/fanout.py",
        "        if reached(markers[path].place) <= end\n",
        "",
        "tests/model/test_regress.py::test_a_path_that_is_ahead_does_not_go_back",
    ),
    Mutant(
        "halt-at-claim-kills-the-process",
        "relay/copier.py",
        "            if state.error is not None:\n"
        '                self._log.error("lane halted", **state.error.as_dict())',
        "            if state.error is not None:\n"
        '                self._log.error("lane halted", lane=state.lane, **state.error.as_dict())',
        "tests/model/test_lane_halts.py",
    ),
    Mutant(
        "any-accepted-loss-starts-from-the-beginning",
        "relay/losses.py",
        "        return Start(From.POSITION, str(min(int(settled.position), state.error.ends_at - 1)))\n"
        "    return None\n",
        "        return Start(From.POSITION, str(min(int(settled.position), state.error.ends_at - 1)))\n"
        "    return Start(From.EARLIEST)\n",
        "tests/model/test_lane_halts.py",
    ),
    Mutant(
        "a-path-beyond-a-cut-stays-there",
        "relay/lanes.py",
        "path: marker.place if reached(marker.place) < ((cut_at, 0), 0) else cut\n",
        "path: marker.place\n",
        "tests/model/test_cuts.py",
    ),
    Mutant(
        "paths-on-both-sides-of-a-cut-go-on",
        "relay/entering.py",
        "        if isinstance(found, SourceRegressed):\n            cuts.append(found)\n",
        "",
        "tests/model/test_cuts.py",
    ),
    Mutant(
        "accepted-regression-goes-on-at-the-old-number",
        "relay/losses.py",
        "    if isinstance(state.error, SourceRegressed):\n",
        "    if isinstance(state.error, SourceRegressed):\n"
        "        return Start(From.POSITION, settled.position)\n"
        "    if isinstance(state.error, SourceRegressed):\n",
        f"{SIMULATION}[source-regressed]",
    ),
    Mutant(
        "path-ahead-of-an-accepted-loss-goes-back",
        "relay/lanes.py",
        "if (is_comparable or (is_reset and at.incarnation == place.incarnation)) and reached(at) > reached(place)",
        "if False",
        "tests/model/test_regress.py",
    ),
    Mutant(
        "path-behind-a-reset-goes-back",
        "relay/lanes.py",
        "(is_comparable or (is_reset and at.incarnation == place.incarnation))",
        "is_comparable",
        "tests/unit/test_relay_lanes.py",
    ),
    Mutant(
        "places-of-two-incarnations-compared",
        "relay/lanes.py",
        "[place for place in places if incarnation and place.incarnation != incarnation] or places",
        "places",
        "tests/unit/test_relay_lanes.py",
    ),
    Mutant(
        "echo-of-any-ordinal-passed-over",
        "model/echo.py",
        "origin.ordinal == last + 1",
        "True",
        "tests/unit/test_echo.py",
    ),
    # -- brokers -------------------------------------------------------------------------------------------------------
    Mutant(
        "script-does-not-check-the-claim",
        "brokers/memory/log.py",
        "if found.claims.get(at) != (claim.epoch, claim.claim_id) or found.markers.get(at) != expected:",
        "if False:",
        f"{ENUMERATION}[kafka-to-redis-1-append]",
    ),
    Mutant(
        "script-checks-the-epoch-alone",
        "brokers/memory/log.py",
        "if found.claims.get(at) != (claim.epoch, claim.claim_id) or found.markers.get(at) != expected:",
        'if found.claims.get(at, (0, ""))[0] != claim.epoch:',
        f"{MEMORY}::test_a_failover_takes_entries_marker_and_claim_together",
    ),
    Mutant(
        "transaction-not-fenced",
        "brokers/memory/log.py",
        "if taken or not is_current(claim.owner.token):",
        "if not is_current(claim.owner.token):",
        f"{CONTRACT}::test_a_newer_claim_fences_the_older_one[memory-record]",
    ),
    Mutant(
        "stale-generation-accepted",
        "brokers/memory/log.py",
        "if taken or not is_current(claim.owner.token):",
        "if taken:",
        f"{MEMORY}::test_a_handle_of_an_older_generation_is_refused",
    ),
    Mutant(
        "marker-set-before-the-commit",
        "brokers/memory/log.py",
        "pending.markers[claim.owner.route, write.path] = marker",
        "stream.markers[claim.owner.route, write.path] = marker",
        f"{ENUMERATION}[redis-to-kafka-1-append]",
    ),
    Mutant(
        "dead-transaction-never-aborted",
        "brokers/memory/log.py",
        "                if older is not None:\n                    self._abort(stream, older[1])\n",
        "",
        f"{MEMORY}::test_an_open_transaction_holds_readers_back_until_it_is_aborted",
    ),
    Mutant(
        "torn-marker-believed",
        "brokers/memory/log.py",
        "if marker is not None and marker.ordinal == origin.ordinal:",
        "if marker is not None:",
        f"{SIMULATION}[target-torn]",
    ),
    Mutant(
        "reader-sees-open-transactions",
        "brokers/memory/lanes.py",
        "return min((offset for rows in self.open.values() for offset in rows), default=self.end)",
        "return self.end",
        f"{MEMORY}::test_an_open_transaction_holds_readers_back_until_it_is_aborted",
    ),
    Mutant(
        "trimmed-partition-unseen",
        "brokers/memory/lanes.py",
        "        if place.count < self.start:\n",
        "        if False:\n",
        f"{CONTRACT}::test_trimming_past_the_place_halts_the_lane_and_no_other[memory-record-1]",
    ),
    Mutant(
        "trimmed-stream-unseen",
        "brokers/memory/lanes.py",
        "        if missing == 0:\n",
        "        if missing >= 0:\n",
        f"{SIMULATION}[source-trimmed]",
    ),
    Mutant(
        "truncated-partition-that-grew-again-unseen",
        "brokers/memory/lanes.py",
        "reached = min(reached, self._leader_end(int(place.witness)))",
        "pass",
        f"{CONTRACT}::test_a_lane_that_lost_what_was_copied_halts[memory-record]",
    ),
    Mutant(
        "remade-lane-unseen",
        "brokers/memory/lanes.py",
        "if place.incarnation and place.incarnation != self.incarnation:",
        "if False:",
        f"{CONTRACT}::test_a_lane_made_anew_halts[memory-record-30]",
    ),
    Mutant(
        "read-skips-one",
        "brokers/memory/lanes.py",
        "bisect_left(self.committed, (offset_behind(place),))",
        "bisect_left(self.committed, (offset_behind(place) + 1,))",
        f"{CONTRACT}::test_reading_goes_on_where_it_ended_on_another_connection_too[memory-record]",
    ),
    Mutant(
        "id-runs-ahead-of-the-clock",
        "brokers/memory/lanes.py",
        "ms = max(min(time_ms, now_ms), self.last[0], 0)",
        "ms = max(time_ms, self.last[0], 0)",
        f"{MEMORY}::test_ids_never_run_ahead_of_the_clock_or_go_back",
    ),
    Mutant(
        "budget-of-quarantine-ignored",
        "brokers/memory/log.py",
        "if len(rejects) > write.quarantine_left:",
        "if False:",
        f"{CONTRACT}::test_more_rejects_than_the_budget_halt_their_lane_alone",
    ),
    Mutant(
        "second-route-let-in",
        "brokers/memory/log.py",
        "        if other != owner.route:\n",
        "        if False:\n",
        f"{CONTRACT}::test_a_second_route_is_refused",
    ),
    # -- the arithmetic of the real adapters ---------------------------------------------------------------------------
    Mutant(
        "redis-missing-entries-forgiven",
        "brokers/redis/reckoning.py",
        "    if missing is None or missing == 0:\n",
        "    if missing is None or missing >= 0:\n",
        RECKONING,
    ),
    Mutant(
        "redis-ids-that-fall-are-proposed",
        "brokers/redis/packing.py",
        "times == sorted(times) and all(map(lt, offsets, offsets[1:]))",
        "True",
        "tests/unit/test_redis_packing.py",
    ),
    Mutant(
        "no-time-taken-for-the-time-of-the-id",
        "brokers/redis/packing.py",
        "    known: int | None = None\n",
        "    known: int | None = -1\n",
        "tests/unit/test_redis_packing.py",
    ),
    Mutant(
        "birth-group-moved-ahead-of-a-failed-append",
        "brokers/redis/births.py",
        "if position_order(place.position) < position_order(earlier.position):",
        "if False:",
        "tests/unit/test_redis_births.py",
    ),
    Mutant(
        "record-without-value-packed-as-a-column",
        "model/mapping.py",
        "if any(rows.headers) or None in values or",
        "if any(rows.headers) or",
        "tests/unit/test_columns.py",
    ),
    Mutant(
        "redis-birth-not-compared",
        "brokers/redis/reckoning.py",
        "if place.incarnation and place.incarnation not in look.births:",
        "if False:",
        RECKONING,
    ),
    Mutant(
        "redis-failover-by-chance-unseen",
        "brokers/redis/reckoning.py",
        "    is_other_history = bool(history and look.history) and history != look.history\n",
        "    is_other_history = False\n",
        RECKONING,
    ),
    Mutant(
        "kafka-marker-ahead-believed",
        "brokers/kafka/tail.py",
        "is_known = target < 0 or is_cut or tail.is_matched",
        "is_known = True",
        TAIL,
    ),
    Mutant(
        "kafka-gap-in-ordinals-ignored",
        "brokers/kafka/tail.py",
        "        if reached >= 0 and origin.ordinal != reached + 1:\n            self.has_gap = True\n",
        "",
        TAIL,
    ),
    Mutant(
        "readers-held-up-for-a-minute",
        "brokers/kafka/settings.py",
        "TRANSACTION_TIMEOUT_MS = 10_000",
        "TRANSACTION_TIMEOUT_MS = 60_000",
        f"{WRITER}::test_a_dead_relay_holds_up_readers_for_ten_seconds",
    ),
    Mutant(
        "markers-stored-before-the-records-are-delivered",
        "brokers/kafka/writer.py",
        "            self._await(lambda: len(delivered) == len(lots) + len(notes), failed)\n",
        "            delivered = dict.fromkeys([lot.path for lot in lots], 0) | delivered\n",
        f"{WRITER}::test_a_slow_transaction_is_committed_and_is_the_last_one_of_its_producer",
    ),
    Mutant(
        "last-record-speaks-for-the-times-of-its-batch",
        "brokers/kafka/writer.py",
        "None if lot.keeps_times(start, stop) else",
        "None if stop - 1 in lot.own_times else",
        f"{WRITER}::test_a_time_that_the_broker_gives_is_refused_where_one_record_would_lose_its_own",
    ),
    Mutant(
        "batch-that-was-sent-again-passes-for-another-time-of-the-topic",
        "brokers/kafka/writer.py",
        "            is_lost = loses_times()\n",
        "            is_lost = True\n",
        f"{WRITER}::test_a_batch_that_was_sent_again_is_no_topic_that_gives_its_own_time",
    ),
    # -- brokers, on real servers --------------------------------------------------------------------------------------
    Mutant(
        "append-does-not-ask-for-the-claim",
        "brokers/redis/append.lua",
        "if known[1] ~= ask.route or known[2] ~= ask.claim then",
        "if known[1] ~= ask.route then",
        f"{CONTRACT}::test_a_newer_claim_fences_the_older_one[valkey]",
        lab=True,
    ),
    Mutant(
        "append-behind-another-marker",
        "brokers/redis/append.lua",
        "  return {'ORDER', marker}\n",
        "",
        f"{REDIS_SERVER}::test_behind_another_marker_than_the_one_left_nothing_is_written[redis7]",
        lab=True,
    ),
    Mutant(
        "append-to-a-stream-made-anew",
        "brokers/redis/append.lua",
        "  if not exists or added < tonumber(known[7]) then return {'GONE'} end\n",
        "",
        f"{REDIS_SERVER}::test_a_target_key_that_was_deleted_is_reset[redis7]",
        lab=True,
    ),
    Mutant(
        "append-to-a-stream-that-others-filled-anew",
        "brokers/redis/append.lua",
        "        if added - length < tonumber(known[7]) then return {'GONE'} end\n",
        "",
        f"{REDIS_SERVER}::test_a_target_key_that_others_have_filled_anew_is_reset[redis7-deleted]",
        lab=True,
    ),
    Mutant(
        "claim-of-a-stream-that-others-filled-anew",
        "brokers/redis/claims.py",
        " or (is_all_new and added - length < seen)",
        "",
        f"{REDIS_SERVER}::test_a_target_key_that_others_have_filled_anew_is_reset[redis7-deleted]",
        lab=True,
    ),
    Mutant(
        "claim-does-not-raise-the-epoch",
        "brokers/redis/claim.lua",
        "epoch = epoch + 1\n",
        "epoch = math.max(epoch, 1)\n",
        f"{CONTRACT}::test_ordinals_go_on_over_claims_and_epochs_rise[valkey]",
        lab=True,
    ),
    Mutant(
        "claim-leaves-the-id-of-the-older-one",
        "brokers/redis/claim.lua",
        "'c:' .. lane, ask.claim, 'd:' .. lane, ask.source)",
        "'c:' .. lane, redis.call('HGET', state, 'c:' .. lane) or ask.claim, 'd:' .. lane, ask.source)",
        f"{CONTRACT}::test_a_newer_claim_fences_the_older_one[valkey]",
        lab=True,
    ),
    Mutant(
        "last-writer-of-another-id-not-fenced",
        "brokers/kafka/claims.py",
        "if names.instance_of(owner.route, stranger) not in live:",
        "if False:",
        f"{KAFKA_CLAIMS}::test_who_wrote_last_under_another_id_can_commit_nothing_behind_the_claim",
        lab=True,
    ),
    Mutant(
        "markers-read-before-the-fence",
        "brokers/kafka/claims.py",
        "            _, topic_id = await asyncio.gather(writer.open(), ",
        "            reader, thread = self._markers()\n"
        "            found = await self._stable_markers(owner, writer.transactional_id, paths)\n"
        "            self._stable_markers = lambda *_, found=found: asyncio.sleep(0, found)  # type: ignore\n"
        "            _, topic_id = await asyncio.gather(writer.open(), ",
        f"{KAFKA_CLAIMS}::test_what_is_committed_before_the_fence_is_seen_by_the_claim",
        lab=True,
    ),
    Mutant(
        "markers-of-a-renewed-claim-not-compared",
        "brokers/kafka/claims.py",
        "            if not are_same(found, claim.stored, claim.claim_id):",
        "            if False:",
        f"{KAFKA_APPENDS}::test_a_producer_is_not_renewed_after_another_claim_has_written",
        lab=True,
    ),
    Mutant(
        "member-commits-without-the-generation-of-its-claim",
        "brokers/kafka/claims.py",
        "            group = owner.token\n",
        "            group = None\n",
        f"{KAFKA_GROUP}::test_lanes_move_between_processes_and_an_old_generation_cannot_write",
        lab=True,
    ),
    Mutant(
        "large-append-goes-into-a-topic-made-anew",
        "brokers/kafka/target.py",
        "0 <= offset < int(before.target) + records:",
        "0 <= offset <= int(before.target):",
        f"{KAFKA_APPENDS}::test_nothing_is_committed_into_a_topic_that_was_made_anew_under_a_claim",
        lab=True,
    ),
    Mutant(
        "lanes-without-records-take-a-new-topic-for-all",
        "brokers/kafka/claims.py",
        "        if not has_copied:\n",
        "        if True:\n",
        f"{KAFKA_CLAIMS}::test_who_has_copied_nothing_does_not_take_a_topic_made_anew_for_who_has",
        lab=True,
    ),
    Mutant(
        "cut-asked-for-beyond-the-end",
        "brokers/kafka/source.py",
        "            self._consumer.incremental_assign([TopicPartition(self._topic, lane, low)])\n",
        "            self._consumer.incremental_assign([sought])\n",
        f"{KAFKA_SOURCE}::test_a_log_that_was_cut_off_and_has_grown_since_halts_whoever_asks[20-0.3]",
        lab=True,
    ),
    Mutant(
        "heartbeats-of-a-namesake-not-heard",
        "relay/service.py",
        "            if first is not None and found.at_s != first.at_s:\n",
        "            if False:\n",
        f"{NAMES}::test_a_process_whose_name_another_one_has_ends_and_says_who",
    ),
]
