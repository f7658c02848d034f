#!lua
-- Appends records relayed from one source lane, with the marker that covers them: all or nothing.
--
-- KEYS[1]  stream  the target lane
-- KEYS[2]  hash    state of the lane (see claim.lua)
-- KEYS[3]  stream  quarantine; given only when there is something for it
-- ARGV[1]  msgpack: {route, claim, lane, expect, marker, ordinal, number, prefix, suffix, rejects, count, width, names,
--          top}
--            expect, marker  the marker's text before and after, without target
--            ordinal         of the last record relayed before this call
--            number          true where source positions are numbers: they may become the sequence of entry ids
--            prefix, suffix  what stands in `xf` before the position and behind the ordinal
--            rejects, count  how many records go to quarantine, and to the stream
--            width           how many names and values each record has, 0 = see ARGV[2]
--            names           how many names all records have in common, in the same order; 0 = see below
--            top             -1, or: the tags rise strictly and are good as entry ids; the highest time in them
-- ARGV[2]  msgpack: how many names and values each record has, where they differ
-- ARGV[3]  msgpack: time of each record in ms since the epoch, -1 = none; empty where the tags tell it
-- ARGV[4...]  those names
-- then        for each reject: position, reason, shape, row
-- then        for each record: its tag, then names and values, or the values alone where the names are given above. A tag
--             is the source position; for a number, where ARGV[3] is empty, it is <time>-<position>
--
-- A script that fails half-way leaves half of its writes behind. So everything that can be refused is refused before
-- the first write: rights, type, claim, predecessor, counts, ids.
--
-- Returns {"OK", id of the last entry, form} | {"DONE", same, same} (this very call was done before)
--   | {"FENCED", claim} | {"ORDER", marker found} | {"GONE"} | {"BEHIND", last-generated-id, last} | {"IDS", id}
--   | {"TYPE", error} | {"RIGHT", command}
local stream, state = KEYS[1], KEYS[2]
local call, sub, format = redis.call, string.sub, string.format
local ask = cmsgpack.unpack(ARGV[1])
local lane = ask.lane

-- Check the claim and the predecessor.
local known = call('HMGET', state, 'route', 'c:' .. lane, 'm:' .. lane, 't:' .. lane, 'form', 'last', 'added', 'own',
  'sources')
if known[1] ~= ask.route or known[2] ~= ask.claim then return {'FENCED', known[2] or ''} end
local marker = known[3] or ''
if marker ~= ask.expect then
  if marker == ask.marker then return {'DONE', known[4] or '', known[5]} end
  return {'ORDER', marker}
end

-- Check the stream against what we left there.
local exists, last_id, added, length, first = false, '0-0', 0, 0, false
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then
  if not string.find(info.err, 'no such key', 1, true) then return {'TYPE', info.err} end
else
  exists = true
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last_id = info[i + 1]
    elseif info[i] == 'entries-added' then added = info[i + 1]
    elseif info[i] == 'length' then length = info[i + 1]
    elseif info[i] == 'first-entry' then first = info[i + 1] end
  end
end
local function split(id)
  local dash = string.find(id, '-', 1, true)
  return tonumber(sub(id, 1, dash - 1)), tonumber(sub(id, dash + 1))
end
local form, last, own = known[5], known[6], tonumber(known[8])
local last_ms, last_seq = split(last_id)
if own == 0 then
  -- nothing of ours is there yet: others may have come, or a stream may have gone, since the claim
  if last ~= last_id then form = 'mixed' end
else
  if not exists or added < tonumber(known[7]) then return {'GONE'} end
  if last ~= last_id then
    local ms, seq = split(last)
    if last_ms < ms or (last_ms == ms and last_seq < seq) then return {'BEHIND', last_id, last} end
    if first then
      -- What stood there behind our last append is gone, all of it: where less was ever removed, this is another stream,
      -- which others have filled.
      local first_ms, first_seq = split(first[1])
      if first_ms > ms or (first_ms == ms and first_seq > seq) then
        if added - length < tonumber(known[7]) then return {'GONE'} end
      end
    end
    form = 'mixed'
  end
end
if last_ms >= 9007199254740000 then return {'IDS', last_id} end

-- Check the rights for every write below: a refusal in mid-script would tear records from their marker.
local count = ask.count
if count > 0 and not redis.acl_check_cmd('XADD', stream, '*', 'f', 'v') then return {'RIGHT', 'xadd'} end
if not redis.acl_check_cmd('HSET', state, 'f', 'v') then return {'RIGHT', 'hset'} end
if ask.rejects > 0 then
  if not redis.acl_check_cmd('XADD', KEYS[3], '*', 'f', 'v') then return {'RIGHT', 'xadd'} end
  local kind = call('TYPE', KEYS[3]).ok
  if kind ~= 'none' and kind ~= 'stream' then return {'TYPE', KEYS[3] .. ' is a ' .. kind} end
end

-- Append the records.
local id = ''
if count > 0 then
  local argv, at = ARGV, 4 + ask.names + 4 * ask.rejects
  local same = ask.width > 0 and ask.width or nil
  local widths = same or cmsgpack.unpack(argv[2])
  local clock = call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local exclusive = form == 'exclusive'
  local exact = exclusive and known[9] == '1'
  local direct = exact and ask.top >= 0 and ask.top <= now
  if direct then
    local ms, seq = split(argv[at])
    direct = ms > last_ms or (ms == last_ms and seq > last_seq)
  end
  local names = ask.names > 0 and {unpack(argv, 4, 3 + ask.names)} or nil
  local first, second = argv[4], argv[5]
  local is_plain = names and same == 4
  local function add(id, at, width, origin)
    if is_plain then
      if origin then
        call('XADD', stream, id, first, argv[at + 1], second, argv[at + 2], 'xf', origin)
      else
        call('XADD', stream, id, first, argv[at + 1], second, argv[at + 2])
      end
      return at + 3
    end
    local fields, after = nil, at + 1 + width
    if names then
      fields, after = {}, at + 1 + width / 2
      for j = 1, width / 2 do fields[2 * j - 1], fields[2 * j] = names[j], argv[at + j] end
    else
      fields = {unpack(argv, at + 1, at + width)}
    end
    if origin then fields[width + 1], fields[width + 2] = 'xf', origin end
    call('XADD', stream, id, unpack(fields, 1, origin and width + 2 or width))
    return after
  end
  if direct and is_plain then
    for i = 1, count do
      call('XADD', stream, argv[at], first, argv[at + 1], second, argv[at + 2])
      at = at + 3
    end
    id = argv[at - 3]
  elseif direct then
    for i = 1, count do
      id = argv[at]
      at = add(id, at, same or widths[i], nil)
    end
  else
    exact = exact and ask.number
    local times = argv[3] ~= '' and cmsgpack.unpack(argv[3]) or nil
    local number, prefix, suffix, ordinal = ask.number, ask.prefix, ask.suffix, ask.ordinal
    -- a number as text; Lua itself keeps 14 digits
    local function text(number)
      if number < 100000000000000 and number > -100000000000000 then return number .. '' end
      return format('%.0f', number)
    end
    for i = 1, count do
      local position, time = argv[at], nil
      if times then
        time = times[i]
      else
        local dash = string.find(position, '-', 1, true)
        time = tonumber(sub(position, 1, dash - 1))
        if number then position = sub(position, dash + 1) end
      end
      -- The id never falls, never runs ahead of the clock, and shows the record's own time where it can.
      local ms, seq = last_ms, 0
      if exclusive then
        if time > ms then ms = time <= now and time or (now > ms and now or ms) end
      elseif now > ms then
        ms = now
      end
      local is_exact = false
      if exact then
        seq = tonumber(position)
        is_exact = seq < 9007199254740992
      end
      if is_exact then
        if ms == last_ms and seq <= last_seq then ms = ms + 1 end
      elseif ms == last_ms then
        seq = last_seq + 1
        if seq >= 9007199254740992 then ms, seq = ms + 1, 0 end
      else
        seq = 0
      end
      if ms == 0 and seq == 0 then ms = 1 end
      last_ms, last_seq = ms, seq
      id = text(ms) .. '-' .. text(seq)

      local origin = nil
      if not is_exact or ms ~= time then
        origin = prefix .. position .. '#' .. text(ordinal + i) .. suffix
        if ms ~= time then origin = origin .. ';t=' .. text(time) end
      end
      at = add(id, at, same or widths[i], origin)
    end
  end
  last_id = id
  added = added + count
end

-- Put the rejects into quarantine.
for i = 0, ask.rejects - 1 do
  local j = 4 + ask.names + 4 * i
  call('XADD', KEYS[3], '*', 'v', '1', 'lane', lane, 'position', ARGV[j], 'reason', ARGV[j + 1],
    'shape', ARGV[j + 2], 'row', ARGV[j + 3])
end

-- Move the marker.
local target = count > 0 and id or (known[4] or '')
call('HSET', state, 'm:' .. lane, ask.marker, 't:' .. lane, target, 'form', form, 'last', last_id, 'added', added,
  'own', own + count)
return {'OK', target, form}
