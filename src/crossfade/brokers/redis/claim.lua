#!lua flags=allow-oom
-- Fences every older claim on some source lanes of one target lane, and says what stands there.
-- It may write above maxmemory (a few bytes): else one full node would stop the claims of all lanes.
--
-- KEYS[1]  stream  the target lane
-- KEYS[2]  hash    state of the lane:
--            v            format version, "1"
--            route        id of the only route that may write here
--            form         "exclusive" (ids carry the source position) or "mixed" (others write here too)
--            last, added  last-generated-id and entries-added behind our last append
--            own          number of records that we ever appended here
--            sources      how many source lanes come here; with one alone may entry ids carry the source position
--            e:<lane>     epoch   \
--            c:<lane>     claim id | one set per source lane whose records come here
--            d:<lane>     digest of source, lane map and mapping
--            m:<lane>     marker as text, without its target
--            t:<lane>     id of the last entry relayed from this source lane
-- ARGV[1]  msgpack: {route, claim, source, lanes}
--
-- Returns {"ROUTE", other} | {"SOURCE", lane, digest} | {"VERSION", v}
--   | {"OK", epoch, exists, last-generated-id, entries-added, length, first, last, added, own, form, wrong,
--      lane, marker, target, lane, ...}
--            first  id of the oldest entry, "" = there is none
--            wrong  why the key is no stream, "" = it is one or there is none; claimed is it all the same
local stream, state = KEYS[1], KEYS[2]
local ask = cmsgpack.unpack(ARGV[1])

-- Read what is known about the lane.
local known = redis.call('HMGET', state, 'v', 'route', 'form', 'last', 'added', 'own')
if known[1] and known[1] ~= '1' then return {'VERSION', known[1]} end
-- Refuse a second route.
if known[2] and known[2] ~= ask.route then return {'ROUTE', known[2]} end

-- Look at the stream; a missing key is an empty lane.
local exists, last_id, added, length, first, wrong = 0, '0-0', 0, 0, '', ''
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then
  if not string.find(info.err, 'no such key', 1, true) then wrong = info.err end
else
  exists = 1
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last_id = info[i + 1]
    elseif info[i] == 'entries-added' then added = info[i + 1]
    elseif info[i] == 'length' then length = info[i + 1]
    elseif info[i] == 'first-entry' and info[i + 1] then first = info[i + 1][1] end
  end
end

-- Refuse another source behind an existing marker, before anything changes.
local epoch = 0
local paths = {}
for i, lane in ipairs(ask.lanes) do
  local path = redis.call('HMGET', state, 'e:' .. lane, 'd:' .. lane, 'm:' .. lane, 't:' .. lane)
  if path[3] and path[2] and path[2] ~= ask.source then return {'SOURCE', lane, path[2]} end
  if path[1] and tonumber(path[1]) > epoch then epoch = tonumber(path[1]) end
  paths[i] = path
end
epoch = epoch + 1

-- Choose the form of entry ids while nothing of ours is there.
local own = tonumber(known[6] or '0')
local form, last, seen = known[3], known[4], tonumber(known[5] or '0')
if own == 0 then
  form = length == 0 and 'exclusive' or 'mixed'
  last, seen = last_id, added
end

-- Take the claim.
redis.call('HSET', state, 'v', '1', 'route', ask.route, 'form', form, 'last', last, 'added', seen, 'own', own)
for _, lane in ipairs(ask.lanes) do
  redis.call('HSET', state, 'e:' .. lane, epoch, 'c:' .. lane, ask.claim, 'd:' .. lane, ask.source)
end

-- Count the source lanes: other processes may have claimed theirs.
local sources = 0
for _, field in ipairs(redis.call('HKEYS', state)) do
  if string.sub(field, 1, 2) == 'e:' then sources = sources + 1 end
end
redis.call('HSET', state, 'sources', sources)

local reply = {'OK', epoch, exists, last_id, added, length, first, last, seen, own, form, wrong}
for i, lane in ipairs(ask.lanes) do
  reply[#reply + 1] = lane
  reply[#reply + 1] = paths[i][3] or ''
  reply[#reply + 1] = paths[i][4] or ''
end
return reply
