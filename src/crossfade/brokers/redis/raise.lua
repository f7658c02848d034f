#!lua flags=allow-oom
-- Gives all source lanes of a claim the same epoch: a claim spans target lanes, whose epochs may have differed.
--
-- KEYS[1]  hash  state of the lane (see claim.lua)
-- ARGV[1]  msgpack: {claim, epoch, lanes}
--
-- Returns {"OK"} | {"FENCED", lane}
local state = KEYS[1]
local ask = cmsgpack.unpack(ARGV[1])
-- Stop where a newer claim came between.
for _, lane in ipairs(ask.lanes) do
  if redis.call('HGET', state, 'c:' .. lane) ~= ask.claim then return {'FENCED', lane} end
end
-- Raise the epochs.
for _, lane in ipairs(ask.lanes) do
  redis.call('HSET', state, 'e:' .. lane, ask.epoch)
end
return {'OK'}
